"""A rehearsal: tiny folders of the real models' own classes with random weights, on which the very commands of a real
run run. Their scores mean nothing."""
