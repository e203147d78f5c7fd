"""Images from bytes to pixels, and from untrusted paths to bytes."""
