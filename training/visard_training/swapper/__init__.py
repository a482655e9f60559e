"""Trains a generator for one direction on pairs, as pix2pixHD was published."""
