"""The two networks of Visard, as plain torch modules under the names of their published weights."""
