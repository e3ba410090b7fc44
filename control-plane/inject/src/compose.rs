//! Compose files: a namespace holder and a sidecar beside each service, and the way back.
