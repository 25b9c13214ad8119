# amorsize with all extras, for the stack of docker-compose.yml: docker compose build app
# The tag of Python is in .env, with all others; it has no default here.
ARG PYTHON_TAG

FROM python:${PYTHON_TAG} AS build
WORKDIR /src
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY dashboards dashboards
COPY amorsize amorsize
COPY stack/constraints.txt stack/constraints.txt
RUN python -m venv /opt/amorsize \
 && /opt/amorsize/bin/pip install --no-cache-dir --constraint stack/constraints.txt ".[all]"

FROM python:${PYTHON_TAG}
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin amorsize
COPY --from=build /opt/amorsize /opt/amorsize
ENV PATH=/opt/amorsize/bin:$PATH \
    PYTHONUNBUFFERED=1
WORKDIR /home/amorsize
# A number, so that an orchestrator can see that it is not root.
USER 10001
EXPOSE 9464
# On all interfaces of the container; publishing the port decides who can reach it.
CMD ["amorsize", "demo", "--forever", "--addr", "0.0.0.0", "--port", "9464"]
