"""What a run costs before it is launched: passes and FLOPs of a sample, and the memory of a micro-batch."""
