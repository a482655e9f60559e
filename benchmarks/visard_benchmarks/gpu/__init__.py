"""What one GPU does with the generator."""
