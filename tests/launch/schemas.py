"""JSON schemas of the launch files, as far as they use each tool's format.

Written from the tools' documentation (November 2026). Each object refuses other keys, so that a
misspelt field, or one at the wrong level, is an error.
"""

from typing import Any

Schema = dict[str, Any]
TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}


def keys(required: Schema, **optional: Schema) -> Schema:
    """An object with exactly these keys, of which `required` must be there."""
    return {
        "type": "object",
        "properties": required | optional,
        "required": list(required),
        "additionalProperties": False,
    }


def items(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def one_of(*values: Any) -> Schema:
    return {"enum": list(values)}


EXIT_CODES = items({"type": "integer", "minimum": 0, "maximum": 255})
TEXTS = {"type": "object", "additionalProperties": TEXT}

# https://docs.skypilot.co/en/latest/reference/, the pages yaml-spec.html and storage.html. A bucket
# that exists is named by `source`; `name` creates one.
SKYPILOT = keys(
    {"run": TEXT},
    name=TEXT,
    num_nodes=NUMBER,
    workdir=TEXT,
    setup=TEXT,
    envs=TEXTS,
    resources=keys(
        {},
        infra=TEXT,
        accelerators={"type": "string", "pattern": r"^\w+:\d+$"},
        use_spot=FLAG,
        job_recovery=keys(
            {},
            strategy=one_of("FAILOVER", "EAGER_NEXT_REGION"),
            max_restarts_on_errors=NUMBER,
            recover_on_exit_codes=EXIT_CODES,
        ),
    ),
    file_mounts={
        "type": "object",
        "additionalProperties": keys(
            {"source": {"type": "string", "pattern": "^(gs|s3)://[a-z0-9._-]+$"}},
            mode=one_of("MOUNT", "COPY", "MOUNT_CACHED"),
        ),
    },
)

# https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy
POD_FAILURE_POLICY = keys(
    {
        "rules": items(
            keys(
                {
                    "action": one_of("FailJob", "FailIndex", "Ignore", "Count"),
                    "onExitCodes": keys(
                        {"operator": one_of("In", "NotIn"), "values": EXIT_CODES},
                        containerName=TEXT,
                    ),
                },
                # JobSet's examples say that it must be given, as an empty list.
                onPodConditions={"type": "array", "maxItems": 0},
            )
        )
    }
)
# https://cloud.google.com/kubernetes-engine/docs/how-to/cloud-storage-fuse-csi-driver-ephemeral
VOLUME = keys(
    {
        "name": TEXT,
        "csi": keys(
            {
                "driver": one_of("gcsfuse.csi.storage.gke.io"),
                "volumeAttributes": keys({"bucketName": TEXT}, mountOptions=TEXT),
            },
            readOnly=FLAG,
        ),
    }
)
CONTAINER = keys(
    {"name": TEXT, "image": TEXT, "resources": keys({"limits": {"type": "object"}})},
    command=items(TEXT),
    args=items(TEXT),
    env=items(keys({"name": TEXT, "value": TEXT})),
    ports=items(keys({"containerPort": NUMBER})),
    volumeMounts=items(keys({"name": TEXT, "mountPath": TEXT}, readOnly=FLAG)),
)
POD = keys(
    {"restartPolicy": one_of("Never"), "containers": items(CONTAINER)},
    terminationGracePeriodSeconds=NUMBER,
    nodeSelector=TEXTS,
    volumes=items(VOLUME),
)
JOB = keys(
    {
        "parallelism": NUMBER,
        "completions": NUMBER,
        "template": keys({"spec": POD}, metadata=keys({}, annotations=TEXTS)),
    },
    backoffLimit=NUMBER,
    podFailurePolicy=POD_FAILURE_POLICY,
)
# https://github.com/kubernetes-sigs/jobset/blob/main/api/jobset/v1alpha2/jobset_types.go
JOBSET = keys(
    {
        "apiVersion": one_of("jobset.x-k8s.io/v1alpha2"),
        "kind": one_of("JobSet"),
        "metadata": keys({"name": TEXT}, annotations=TEXTS),
        "spec": keys(
            {
                "replicatedJobs": items(
                    keys({"name": TEXT, "template": keys({"spec": JOB})}, replicas=NUMBER)
                )
            },
            failurePolicy=keys(
                {},
                maxRestarts=NUMBER,
                rules=items(
                    keys(
                        {
                            "name": {
                                "type": "string",
                                "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                            },
                            "action": one_of(
                                "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"
                            ),
                        },
                        onJobFailureReasons=items(
                            one_of("BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy")
                        ),
                        targetReplicatedJobs=items(TEXT),
                    )
                ),
            ),
        ),
    }
)

# https://cloud.google.com/kubernetes-engine/docs/how-to/node-system-config: of the total, critical
# pods get the second number.
NODE_SYSTEM = keys(
    {
        "kubeletConfig": keys(
            {
                "shutdownGracePeriodSeconds": one_of(0, 30, 120),
                "shutdownGracePeriodCriticalPodsSeconds": {"type": "integer", "maximum": 120},
            }
        )
    }
)

# Options of `xpk workload create` and `xpk storage attach`, without values for flags; from
# https://github.com/AI-Hypercomputer/xpk, src/xpk/parser and docs/usage/storage.md.
XPK = {
    "workload create": (
        {"cluster", "workload", "tpu-type", "command"},
        {
            *("project", "zone", "docker-image", "storage", "env", "max-restarts"),
            *("restart-on-exit-codes", "termination-grace-period-seconds"),
        },
    ),
    "storage attach": (
        {"cluster", "type", "mount-point", "readonly", "auto-mount"},
        {"project", "zone", "bucket", "size"},
    ),
}
