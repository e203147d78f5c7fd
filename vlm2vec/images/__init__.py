"""Reads images from untrusted paths and decodes untrusted bytes."""
