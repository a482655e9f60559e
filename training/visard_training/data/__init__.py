"""Prepares training data: photographs of people to aligned faces, and augmentation."""
