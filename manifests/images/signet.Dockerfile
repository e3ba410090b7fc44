# The operator's tool. manifests/images/build makes the layer and reads USER here.
FROM scratch
ADD layer.tar /
# The control plane's user: its socket is open to that one and to root.
USER 1337:1337
WORKDIR /
ENTRYPOINT ["/signet"]
ARG VERSION
LABEL org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.title="signet" \
    org.opencontainers.image.version="$VERSION"
