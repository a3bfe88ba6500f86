"""The limit that the web benchmark compares with: Flask under granian, answering a constant.

`granian --interface wsgi --workers N constant_server:app`, run in this folder, is all of it.
"""

from __future__ import annotations

from flask import Flask, Response

app = Flask(__name__)
app.add_url_rule("/invocations", "constant", lambda: Response('{"predictions": [1]}'), methods=["POST"])
