# The image of Vade: the API and the worker under supervisord, for a PostgreSQL elsewhere (DATABASE_URL).
FROM python:3.13-slim-trixie AS python

FROM python AS build
COPY requirements/base.txt /tmp/base.txt
# Wheels only: nothing is compiled, so no stage has a compiler. The environment goes without pip of its own.
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary=:all: -r /tmp/base.txt

FROM python
# A numeric user, by which an orchestrator can tell that it is not root. Of all files it can write only its volume's.
RUN groupadd --system --gid 10001 vade \
    && useradd --system --uid 10001 --gid vade --home-dir /var/lib/vade --shell /usr/sbin/nologin vade \
    && install --directory --owner=vade --group=vade --mode=0700 /var/lib/vade
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
COPY . .

# supervisord.conf finds `python` on PATH, and asks EMBEDDED_POSTGRES whether the database is one of its programs.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    EMBEDDED_POSTGRES=false \
    HOST=0.0.0.0 \
    INSTANCE_DIR=/var/lib/vade
USER 10001:10001
VOLUME /var/lib/vade
EXPOSE 8000
STOPSIGNAL SIGTERM

# Ready means that it can serve: the database answers, with a schema that is not older than the code.
# http.client, because urllib would ask the proxy of the environment.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; api = http.client.HTTPConnection('127.0.0.1', os.environ.get('PORT') or 8000, timeout=5); api.request('GET', '/readyz'); sys.exit(api.getresponse().status != 200)"]
CMD ["python", "launch.py", "supervise"]
