"""What a run gained: measures of clips by an evaluator that no reward has seen, before against after."""
