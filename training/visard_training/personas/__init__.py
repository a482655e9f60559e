"""Makes personas, faces of nobody, and trains the generator that puts them in a face's place."""
