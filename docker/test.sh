#!/usr/bin/env bash
# Builds the image, runs it as docker-compose.yml says, and tries what it promises. Leaves nothing running.
#   PYTHON_IMAGE      the image to build on, where the default cannot be pulled
#   DDAEBM_TEST_PORT  port of this machine to publish on; a free one otherwise
#   PYTHON            a Python 3.11 or later to send requests with
# Prometheus and Grafana are not started: promtool checks the files of the one where there is one, and an image that is
# here anyway stands in for the other, to see what its container may read and write.
set -euo pipefail
cd "$(dirname "$0")/.."

if docker compose version >/dev/null 2>&1; then
  compose=(docker compose)
elif docker-compose version >/dev/null 2>&1; then
  compose=(docker-compose)
else
  echo "docker-test: needs Docker Compose ('docker compose' or 'docker-compose')" >&2
  exit 1
fi
docker info >/dev/null || { echo "docker-test: no Docker engine answers" >&2; exit 1; }
# A project of its own: whatever else runs from this folder is left alone.
compose+=(-f docker-compose.yml -p "ddaebm-test-$$")
export DDAEBM_PORT=${DDAEBM_TEST_PORT:-0}
container=

finish() {
  status=$?
  trap - EXIT
  if ((status)) && [[ -n $container ]]; then
    echo "--- log of the service"
    docker logs --tail 50 "$container" 2>&1 || true
    echo "--- last probes"
    docker inspect -f '{{range .State.Health.Log}}{{.ExitCode}} {{.Output}}{{println}}{{end}}' "$container" || true
  fi
  "${compose[@]}" down --volumes --rmi local >/dev/null 2>&1 || echo "docker-test: could not tear everything down" >&2
  if ((status)); then echo "docker-test: FAILED"; else echo "docker-test: all passed"; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

ok() { echo "ok: $*"; }
fail() {
  echo "FAILED: $*"
  exit 1
}
state() { docker inspect -f "{{.State.$1}}" "$container"; }
inside() { docker exec "$container" "$@"; }

if command -v promtool >/dev/null; then
  promtool check config docker/prometheus.yml
  promtool check rules docker/alerts.yml
  promtool test rules docker/alerts_test.yml
  ok "Prometheus takes its configuration, and the alerts fire when they should"
else
  echo "skipped: Prometheus' files, because promtool is not on PATH (it comes with Prometheus)"
fi

"${compose[@]}" config >/dev/null
"${compose[@]}" build ddaebm
"${compose[@]}" up -d ddaebm
began=$SECONDS
container=$("${compose[@]}" ps -q ddaebm)
until [[ $(state Health.Status) == healthy ]]; do
  # restart: unless-stopped would hide that it cannot start.
  [[ $(state Status) == running && $(docker inspect -f '{{.RestartCount}}' "$container") == 0 ]] ||
    fail "the service ended instead of starting"
  ((SECONDS - began < 120)) || fail "not healthy within 120 s"
  sleep 0.5
done
ok "healthy after $((SECONDS - began)) s"
echo "image size: $(docker image inspect -f '{{.Size}}' "$(docker inspect -f '{{.Image}}' "$container")" |
  awk '{printf "%.0f MB", $1 / 1e6}')"

"${PYTHON:-python3}" docker/check.py "http://$(docker port "$container" 8000/tcp | head -n 1)"

uid=$(inside id -u)
((uid)) || fail "runs as root"
ok "runs as user $uid"
! inside sh -c ': >/opt/venv/probe' 2>/dev/null || fail "/opt/venv can be written"
[[ $(docker inspect -f '{{.HostConfig.ReadonlyRootfs}}' "$container") == true ]] || fail "the root filesystem can be written"
ok "the root filesystem is read-only"
inside python -c 'import importlib.util as u, onnxruntime; raise SystemExit(u.find_spec("torch") is not None)' ||
  fail "torch is in the image"
ok "onnxruntime is in the image, torch is not"

standin=$(mktemp)
printf 'services: {grafana: {image: "%s", user: "472:0", entrypoint: [sleep, "120"]}}\n' \
  "$(docker inspect -f '{{.Image}}' "$container")" >"$standin"
GRAFANA_PORT=0 "${compose[@]}" -f "$standin" up -d --no-deps grafana
rm "$standin"
grafana=$("${compose[@]}" ps -q grafana)
while read -r source writable; do
  [[ $source != */docker/grafana/* || $writable == false ]] || fail "Grafana can write $source"
done < <(docker inspect -f '{{range .Mounts}}{{.Source}} {{.RW}}{{println}}{{end}}' "$grafana")
docker exec "$grafana" sh -c 'cat /etc/grafana/dashboards/ddaebm.json /etc/grafana/provisioning/d*/*.yml' >/dev/null ||
  fail "Grafana cannot read its files"
docker exec "$grafana" sh -c ': >/var/lib/grafana/probe && : >/tmp/probe' || fail "Grafana has nowhere to write"
! docker exec "$grafana" sh -c ': >/etc/grafana/dashboards/probe || : >/usr/probe' 2>/dev/null ||
  fail "Grafana can write more than its data"
ok "Grafana's container reads its files, mounted read-only, and writes only its data"

began=$SECONDS
"${compose[@]}" stop ddaebm
[[ $(state ExitCode) == 0 && $(state OOMKilled) == false ]] || fail "exit code $(state ExitCode) after SIGTERM"
ok "exit code 0, $((SECONDS - began)) s after SIGTERM"
