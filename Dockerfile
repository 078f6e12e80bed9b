# The server with the embedded model:
#
#     docker build -t fastmem .
#     docker run --rm -p 127.0.0.1:8000:8000 -e FASTMEM_API_KEY=choose-one fastmem
#
# pip's own choice of torch includes CUDA (4.9 GB). For the CPU build (0.2 GB) pass the package index that pytorch.org
# shows under "Get Started" for pip and CPU: docker build --build-arg TORCH_INDEX=ADDRESS -t fastmem .
FROM python:3.11-slim AS build
ARG TORCH_INDEX=""
WORKDIR /fastmem
COPY constraints constraints
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c constraints/cpu.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN /venv/bin/pip install --no-cache-dir -c constraints/cpu.txt ".[serve,json-schema]"

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 fastmem \
 && install --directory --owner=fastmem /memories
COPY --from=build /venv /venv
USER 1000
WORKDIR /home/fastmem
ENV PATH=/venv/bin:$PATH
EXPOSE 8000
VOLUME /memories
# Loading a model takes its time; a server that is up answers at once (docs/guides/serving.md).
HEALTHCHECK --start-period=120s --interval=15s --timeout=5s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["fastmem", "serve", "--host", "0.0.0.0", "--port", "8000", "--store", "/memories"]
CMD []
