"""Photographs of people into aligned faces, and how trainings vary them."""
