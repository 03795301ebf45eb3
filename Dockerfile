# The gateway in a container: Debian, not root, an init as PID 1.
#
#   docker build -t gateway .
#   docker run -p 7004:7004 -e CONNECTOR_PROXY_API_KEY=... -v gateway-state:/var/lib/gateway \
#     --security-opt no-new-privileges --security-opt seccomp=deploy/seccomp.json --security-opt systempaths=unconfined \
#     --cap-drop ALL --memory 4g --pids-limit 8192 gateway
#
# It listens at every address, so without a key it does not start (or mount a connectors.yaml with `gateway: {open: true}`).
#
# seccomp and systempaths are what sandboxes take in a container, and --security-opt apparmor=unconfined where the host has
# AppArmor. Without them connectors see each other's processes and share /tmp, and `sandbox: strict` is refused: `gateway check
# --sandbox` in the container says what there is, docs/security.md what it means. Never --privileged, and no engine's socket.
#
# To serve connectors of your own, mount connectors.yaml and connectors.d into /etc/gateway, or copy them there in an image
# made FROM this one. What they are written in comes with PACKAGES:
#
#   docker build --build-arg PACKAGES="perl nodejs default-jre-headless" -t gateway .
#
# Debian, or something made from it, with Python 3.11 or later; where the base has no Python, Debian's is installed.
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS base
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates tini $(command -v python3 >/dev/null || echo python3) \
 && apt-get clean && rm -rf /var/lib/apt/lists/*

FROM base AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv gcc libc6-dev \
 && apt-get clean && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY pyproject.toml uv.lock ./
# The uv that the lock names, as scripts/setup has it.
RUN python3 -m venv /opt/uv \
 && /opt/uv/bin/pip install --no-cache-dir "uv==$(sed -n '/^name = "uv"$/{n;s/version = "\(.*\)"/\1/p}' uv.lock)"
ENV PATH=/opt/uv/bin:$PATH \
    UV_PROJECT_ENVIRONMENT=/opt/gateway UV_PYTHON=python3 UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_NO_CACHE=1 \
    UV_COMPILE_BYTECODE=1
# Traces (docs/tracing.md) take --build-arg EXTRA=otel.
ARG EXTRA=
RUN uv sync --locked --no-dev --no-install-project ${EXTRA:+--extra ${EXTRA}}
COPY README.md LICENSE CHANGELOG.md hatch_build.py ./
COPY gateway/ gateway/
COPY runners/ runners/
RUN uv sync --locked --no-dev --no-editable ${EXTRA:+--extra ${EXTRA}}

FROM base
# perl is what connectors.d/text.pl is written in. curl is for health checks, git for requirements that are repositories.
ARG PACKAGES=perl
RUN apt-get update \
 && apt-get install -y --no-install-recommends curl git ${PACKAGES} \
 && apt-get clean && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 7004 --user-group --no-create-home --home-dir /var/lib/gateway --shell /usr/sbin/nologin gateway \
 && install -d -m 0750 -o gateway -g gateway /var/lib/gateway \
 && install -d /etc/gateway \
 && ln -s /var/lib/gateway /etc/gateway/.gateway
COPY --from=build /opt/gateway /opt/gateway
COPY connectors.d/ /etc/gateway/connectors.d/
COPY connectors.yaml /etc/gateway/
ENV PATH=/opt/gateway/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    CONNECTOR_PROXY_PORT=7004
WORKDIR /etc/gateway
USER gateway
VOLUME /var/lib/gateway
EXPOSE 7004
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["sh", "-c", "exec curl --fail --silent --output /dev/null --max-time 4 \"localhost:${CONNECTOR_PROXY_PORT}/liveness\""]
# tini reaps what is nobody's child, and hands SIGTERM on: the gateway then drains.
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["sh", "-c", "exec gateway serve --listen \":${CONNECTOR_PROXY_PORT}\" --log-format json"]
