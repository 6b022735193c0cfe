# One image for the front end and the workers. CUDA comes with the torch wheels; the host needs only the NVIDIA driver
# and its container toolkit. Without a GPU the same image runs on the CPU.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

RUN useradd --uid 10001 --create-home wanbox && mkdir /data && chown wanbox:wanbox /data

WORKDIR /src
# torch and the rest first: they change seldom, and a change of our code must not install them again
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt

COPY README.md LICENSE ./
COPY configs configs
COPY server server
COPY pipelines pipelines
COPY kernels kernels
RUN pip install -c constraints.txt ".[s3]"

USER wanbox
WORKDIR /data
# a container is reached from outside, so the server starts only when it has keys: WANBOX_API_KEYS or `wanbox keys create`
ENV WANBOX_HOST=0.0.0.0 \
    WANBOX_PORT=8000 \
    WANBOX_DATA_DIR=/data
VOLUME /data
EXPOSE 8000

HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ['WANBOX_PORT'] + '/healthz', timeout=4)"]

ENTRYPOINT ["wanbox"]
CMD ["serve"]
