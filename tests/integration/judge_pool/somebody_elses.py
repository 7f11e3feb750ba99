"""A foreign Ray cluster with a named actor in its own namespace. Each line on stdin is answered by one.

The first line that it prints is its address. `actors` lists named actors, `say FIELD VALUE` changes the versions
that the cluster reports, anything else calls the actor.
"""

import json
import sys

import ray

ray.init(
    address="local",
    num_cpus=2,
    object_store_memory=78_643_200,
    include_dashboard=False,
    namespace="theirs",
    log_to_driver=False,
    logging_level="error",
    _temp_dir=sys.argv[1],
)


@ray.remote(num_cpus=0)
class Theirs:
    def ping(self) -> str:
        return "unharmed"


theirs = Theirs.options(name="theirs").remote()
ray.get(theirs.ping.remote())


def answer(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def changed(field: str, value: str) -> str:
    from ray._common.usage import usage_constants, usage_lib
    from ray._private import ray_constants

    gcs = ray._private.worker.global_worker.gcs_client
    told = usage_lib.get_cluster_metadata(gcs)
    before = told[field]
    key, space = usage_constants.CLUSTER_METADATA_KEY, ray_constants.KV_NAMESPACE_CLUSTER
    gcs.internal_kv_put(key, json.dumps({**told, field: value}).encode(), overwrite=True, namespace=space)
    return before


answer(ray.get_runtime_context().gcs_address)
for line in sys.stdin:
    word, *rest = line.split()
    if word == "actors":
        answer(json.dumps(ray.util.list_named_actors(all_namespaces=True)))
    elif word == "say":
        answer(changed(*rest))
    else:
        answer(ray.get(theirs.ping.remote(), timeout=30))
