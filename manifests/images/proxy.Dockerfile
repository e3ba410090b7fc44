# The sidecar, and the step that installs its capture rules. manifests/images/build makes the layer and reads USER here.
FROM scratch
ADD layer.tar /
# Root, because Docker and Kubernetes hand capabilities to root only, and capture and the mark need NET_ADMIN. Everything
# else can and should be dropped. Where the rules are a step of their own, run this as any other user: docs/images.md.
USER 0:0
WORKDIR /
ENTRYPOINT ["/signet-proxy"]
ARG VERSION
LABEL org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.title="signet-proxy" \
    org.opencontainers.image.version="$VERSION"
