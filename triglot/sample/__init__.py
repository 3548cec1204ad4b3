"""The sample: every flight that left New York in 2013, through the public APIs of all three dialects."""
