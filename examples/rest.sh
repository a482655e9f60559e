#!/bin/sh
# Anonymises one photo through a running `visard web`: sh rest.sh photo.jpg anonymised.jpg
set -eu
web=http://127.0.0.1:8080

# the faces, with their places and apparent genders
curl --fail-with-body -sS -F "photo=@$1" "$web/v1/faces"

# anonymised; a face that cannot be swapped gets a grey cover, and how the photo was exposed stays in the file
curl --fail-with-body -sS -F "photo=@$1" "$web/v1/anonymize?cover=solid&keep=exposure&format=jpeg" -o "$2"
