"""What durability costs: the samples as they are, beside the same calls made directly, on the reader's machine."""
