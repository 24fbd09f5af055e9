"""`ray up` and its files: the schema by Ray's own validator, AWS by moto, and the real thing on hosts that are
namespaces of this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from raytrain.config import SECTIONS
from tests.cluster import fake_hosts
from tests.datasets import small_dataset

REPOSITORY = Path(__file__).parents[2]
AWS, LOCAL = REPOSITORY / "cluster.yaml", REPOSITORY / "docs" / "cluster-local.yaml"


def prepared(path: Path) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(path.read_text()))
    validate_config(config)
    return config


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home with a token and without credentials."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 32)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(REPOSITORY)
    return


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_ray_accepts_the_file(path: Path, token: None) -> None:
    config = prepared(path)
    assert config["cluster_name"] == "raytrain"
    head = " ".join(config["head_start_ray_commands"])
    assert "--num-cpus=0" in head and "--dashboard-host=127.0.0.1" in head
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [line for line in commands if "ray start" in line]
        assert starts and all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "~/.ray/auth_token" in config["file_mounts"]


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_no_hyper_parameter_is_in_the_file(path: Path) -> None:
    text = path.read_text()
    known = {f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields}
    assert not [key for key in known if key in text] and "--set" not in text
    assert "raytrain train" not in re.sub(r"#.*", "", text)


@pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.name)
def test_versions_are_those_of_the_constraints(path: Path) -> None:
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)$", (REPOSITORY / "constraints.txt").read_text(), re.M))
    torch = re.search(r"TORCH \?= torch==([\d.]+)", (REPOSITORY / "Makefile").read_text())
    text = path.read_text()
    assert torch and set(re.findall(r"torch==([\d.]+)", text)) == {torch[1]}
    assert "pip install --quiet -c constraints.txt ." in text
    images = re.findall(r"rayproject/ray:([\d.]+)-py311", text)
    assert set(images) <= {pins["ray"]} and len(images) == (2 if path == AWS else 0)


def test_aws_makes_and_ends_the_machines(token: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against moto's AWS: role, key pair, security group, a head and a spot worker."""
    moto = pytest.importorskip("moto", reason="moto is not installed: pip install 'moto[ec2,iam]'")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        from ray.autoscaler._private.aws import config as of_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        config = prepared(AWS)
        images = boto3.client("ec2", region_name="us-west-2").describe_images()["Images"]
        for node_type in config["available_node_types"].values():
            node_type["node_config"]["ImageId"] = images[0]["ImageId"]
        monkeypatch.setattr(of_aws.time, "sleep", lambda seconds: None)  # it waits for a real AWS
        config = of_aws.bootstrap_aws(config)
        config["provider"]["cache_stopped_nodes"] = False
        config = AWSNodeProvider.fillout_available_node_types_resources(config)
        gpu = config["available_node_types"]["gpu"]
        assert gpu["resources"]["GPU"] == 4 and gpu["resources"]["CPU"] == 48
        assert config["available_node_types"]["head"]["resources"]["CPU"] == 0
        groups = boto3.client("ec2", region_name="us-west-2").describe_security_groups(
            GroupIds=gpu["node_config"]["SecurityGroupIds"]
        )["SecurityGroups"]
        outside = {
            (rule.get("FromPort"), rule.get("ToPort"))
            for group in groups
            for rule in group["IpPermissions"]
            if rule["IpRanges"]
        }
        assert outside == {(22, 22)}, "ssh and nothing else"
        provider = AWSNodeProvider(config["provider"], "raytrain")
        for kind in ("head", "gpu"):
            node_config = config["available_node_types"][kind]["node_config"]
            provider.create_node(node_config, {"ray-node-type": kind, "ray-node-name": kind}, 1)
        nodes = provider.non_terminated_nodes({})
        assert len(nodes) == 2
        described = boto3.client("ec2", region_name="us-west-2").describe_instances()["Reservations"]
        instances = {i["InstanceType"]: i for r in described for i in r["Instances"]}
        assert instances["g5.12xlarge"].get("InstanceLifecycle") == "spot"
        assert "InstanceLifecycle" not in instances["m6i.large"]
        provider.terminate_nodes(nodes)
        assert provider.non_terminated_nodes({}) == []


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_up_submit_exec_down_over_ssh(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    reason = fake_hosts.missing()
    if reason is not None:
        pytest.skip(reason)
    dataset = small_dataset(tmp_path_factory.mktemp("data"))
    try:
        records = fake_hosts.run(LOCAL, tmp_path, Path(dataset.path), timeout=850.0)
    except subprocess.CalledProcessError as error:
        pytest.fail(f"{error}\n{error.output[-5000:]}")
    steps = {record.pop("step"): record for record in records}
    if "CI" in os.environ or "-v" in sys.argv:
        print(json.dumps(steps))
    for name in ("ray up", "both nodes alive", "ray exec", "ray submit", "job: raytrain train", "ray down"):
        assert steps[name]["code"] == 0
    assert steps["task ran on the worker"]["yes"]
    assert steps["run"] == {"workers": 2, "validations": 3}
    assert steps["jobs API"] == {"without token": 401, "wrong token": 403, "with token": 200}
    assert steps["dashboard from outside"]["curl"] == 7, "refused"
    assert steps["ray processes left"]["head"] == 0
