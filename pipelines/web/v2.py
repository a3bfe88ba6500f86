"""The Open Inference Protocol (V2), as KServe, Triton and MLServer speak it: JSON tensors over the same endpoint.

https://github.com/kserve/open-inference-protocol. The binary tensor data extension is not spoken, and refused in words.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from flask import Blueprint, request
from werkzeug.wrappers import Response

from mlflow_flywheel.pipelines.errors import BadInput, NotFound, nearest
from mlflow_flywheel.pipelines.model import describe
from mlflow_flywheel.pipelines.scoring import ScoringCore

from .endpoint import Endpoint
from .parsing import JSON, Parser, Rows, UnsupportedMediaType, media_type, read_json
from .responses import json_response
from .service import Answer
from .tensors import datatype_of, id_tensor, prediction_tensors, read_tensors
from .wsgi import Environ, StartResponse, WSGIApp

PLATFORM = "mlflow_pyfunc"
_NO_BINARY = "the binary tensor data extension is not supported; send and ask for JSON data"


def v2_form(code: str, message: str) -> dict[str, str]:
    """Return a refusal's JSON as the protocol has it."""
    return {"error": message}


def is_v2(path: str) -> bool:
    """Whether a caller of this path speaks V2 and wants its errors so."""
    return path == "/v2" or path.startswith("/v2/")


def routes(core: ScoringCore, parser: Parser, endpoint: Endpoint) -> Blueprint:
    """Return the protocol's routes for the one model version that is served."""
    v2 = Blueprint("v2", __name__, url_prefix="/v2")
    metadata = model_metadata(core)
    produced = [output["name"] for output in metadata["outputs"]]

    def served(model_name: str, model_version: str | None = None) -> None:
        ref = core.scorer.ref
        if model_name != ref.name or model_version not in (None, ref.version or None):
            asked = f"model {model_name!r}" + (f" version {model_version!r}" if model_version else "")
            raise NotFound(f"{asked} is not served here; this is {describe(ref)}")

    def about(model_name: str, model_version: str | None = None) -> Response:
        served(model_name, model_version)
        return json_response(metadata)

    def ready(model_name: str, model_version: str | None = None) -> Response:
        served(model_name, model_version)
        return json_response({"name": model_name, "ready": True})

    def infer(model_name: str, model_version: str | None = None) -> WSGIApp:
        served(model_name, model_version)
        inference = _Inference(core, parser, produced, "Inference-Header-Content-Length" in request.headers)

        def answer(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            return endpoint.answer(environ, start_response, inference.parse, inference.render, v2_form)

        return answer

    v2.add_url_rule("", "server", lambda: json_response(server_metadata()))
    v2.add_url_rule("/health/live", "live", lambda: json_response({"live": True}))
    v2.add_url_rule("/health/ready", "ready", lambda: json_response({"ready": True}))
    for model in ("/models/<model_name>", "/models/<model_name>/versions/<model_version>"):
        v2.add_url_rule(model, "about", about)
        v2.add_url_rule(f"{model}/ready", "model_ready", ready)
        v2.add_url_rule(f"{model}/infer", "infer", infer, methods=["POST"])
    return v2


def server_metadata() -> dict[str, Any]:
    """Return what GET /v2 answers."""
    return {"name": "mlflow-flywheel", "version": version("mlflow-flywheel"), "extensions": []}


def model_metadata(core: ScoringCore) -> dict[str, Any]:
    """Return what is served: its inputs from the signature, its outputs from the answer to its own input example."""
    scorer = core.scorer
    if scorer.input_example is not None:
        outputs = prediction_tensors(scorer.predict(scorer.input_example).native)
    else:
        outputs = prediction_tensors([""] if scorer.kind == "string" else [0.0])
    return {
        "name": scorer.ref.name,
        "versions": [scorer.ref.version] if scorer.ref.version else [],
        "platform": PLATFORM,
        "inputs": [
            {"name": feature.name, "datatype": datatype_of(feature), "shape": [-1]}
            for feature in scorer.schema.features
        ],
        "outputs": [
            {"name": tensor["name"], "datatype": tensor["datatype"], "shape": [-1, *tensor["shape"][1:]]}
            for tensor in (*outputs, id_tensor([]))
        ],
    }


class _Inference:
    """One inference request: what its body says beyond the rows is kept until it is answered."""

    def __init__(self, core: ScoringCore, parser: Parser, produced: list[str], binary: bool) -> None:
        self._ref = core.scorer.ref
        self._schema = core.scorer.schema
        self._parser = parser
        self._produced = produced
        self._binary = binary
        self._id: str | None = None
        self._wanted: list[str] = []

    def parse(self, body: bytes, content_type: str | None) -> Rows:
        """Read the body. Raises BadInput, UnsupportedMediaType or TooManyRows."""
        kind = (content_type or JSON).partition(";")[0].strip().lower()
        if self._binary or kind == "application/octet-stream":
            raise UnsupportedMediaType(_NO_BINARY)
        if kind != JSON:
            raise UnsupportedMediaType(
                f"content type {content_type!r} is not supported; V2 requests are {JSON}"
            )
        media_type(content_type)  # refuses other charsets
        data = read_json(body)
        if not isinstance(data, dict):
            raise BadInput(f'the body must be a JSON object with "inputs", it is a {type(data).__name__}')
        self._id = data.get("id")
        if self._id is not None and not isinstance(self._id, str):
            raise BadInput(f"id must be a string, got {type(self._id).__name__}")
        said = _object(data.get("parameters"), "parameters")
        self._wanted = self._outputs(data.get("outputs"), said)
        columns, n = read_tensors(data.get("inputs"), self._schema)
        if self._id and n == 1:
            said = {"client_request_id": self._id, **said}
        return self._parser.rows_of(columns, n, said)

    def _outputs(self, outputs: Any, said: dict[str, Any]) -> list[str]:
        """Return the names of the outputs that are asked for: all that there are when none are named."""
        asked = [] if outputs is None else outputs
        if not isinstance(asked, list) or not all(
            isinstance(output, dict) and isinstance(output.get("name"), str) for output in asked
        ):
            raise BadInput('outputs must be a list of objects like {"name": "predict"}')
        parameters = [_object(output.get("parameters"), "parameters of an output") for output in asked]
        if said.get("binary_data_output") or any(each.get("binary_data") for each in parameters):
            raise BadInput(_NO_BINARY)
        for output in asked:
            if output["name"] not in self._produced:
                raise BadInput(
                    f"output {output['name']!r} does not exist{nearest(output['name'], self._produced)}; there are: "
                    + ", ".join(self._produced)
                )
        return [output["name"] for output in asked]

    def render(self, answer: Answer) -> dict[str, Any]:
        """Return the answer's JSON."""
        tensors = [*prediction_tensors(answer.predictions), id_tensor(answer.prediction_ids)]
        return {
            **({} if self._id is None else {"id": self._id}),
            "model_name": self._ref.name,
            **({"model_version": answer.version} if answer.version else {}),
            "outputs": [tensor for tensor in tensors if not self._wanted or tensor["name"] in self._wanted],
        }


def _object(value: Any, what: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise BadInput(f"{what} must be an object, got {type(value).__name__}")
    return value or {}
