"""Keras twins of the architectures, and the proof that both compute the same.

Importing this imports neither TensorFlow nor Keras; the first function that needs them does.
"""
