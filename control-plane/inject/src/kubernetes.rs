//! Kubernetes manifests: a native sidecar in each pod.
