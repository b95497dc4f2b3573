"""One engine that plays episodes in simulators: for evaluation, for recording demonstrations, for replay."""
