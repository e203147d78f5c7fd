"""Everything that observes a run: heartbeat, metrics, TensorBoard, profiles, MFU."""
