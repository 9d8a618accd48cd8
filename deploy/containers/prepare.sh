#!/bin/sh
# prepare.sh [FOLDER]: certificates, keys and synthetic pictures of the trial, once, in a container of compose.yaml.
# FOLDER (/trial) holds study.yaml and hospitals.yaml.
set -eu
umask 077
cd "${1:-/trial}"
coordinator=coordinator/kits/coordinator

mkdir -p coordinator door
cp study.yaml coordinator/
feddusss provision study.yaml --out coordinator/kits
feddusss synth made --config hospitals.yaml
for site in site_a site_b; do
    python3 -m zipfile -e "coordinator/kits/$site.zip" .
    mv "made/$site" "$site/data"
    feddusss client init --site "$site/site.yaml"
    feddusss register "$site" "$site/$site.key.pub" --coordinator "$coordinator"
done
rm -r made
cp "$coordinator/nginx.conf" door/feddusss.conf
