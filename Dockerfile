# docker build -t intrasense-fast . && docker run --rm -v "$PWD/runs:/data/runs" intrasense-fast train
FROM python:3.11-slim
WORKDIR /data
RUN apt-get update \
 && apt-get install -y --no-install-recommends git gcc libc6-dev libgl1 libglib2.0-0 \
 && rm -rf /var/lib/apt/lists/*
COPY . /opt/intrasense-fast
RUN pip install --no-cache-dir -c /opt/intrasense-fast/constraints.txt /opt/intrasense-fast
ENTRYPOINT ["intrasense-fast"]
CMD ["--help"]
