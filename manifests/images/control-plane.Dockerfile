# The control plane. manifests/images/build makes the layer and reads USER here.
FROM scratch
ADD layer.tar /
# It needs no rights: its ports are above 1024, and its directories belong to this user.
USER 1337:1337
WORKDIR /
ENTRYPOINT ["/signet-control-plane"]
ARG VERSION
LABEL org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.title="signet-control-plane" \
    org.opencontainers.image.version="$VERSION"
