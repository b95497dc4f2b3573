"""Evaluate the policy that `server.py` (or an openpi server, or `refinevla serve`) has at an address; see
there how to start it.

An openpi server says neither its name nor its conventions and wants its own keys:

    def observation(image, instruction):
        return {"observation/image": image, "observation/state": np.zeros(8), "prompt": instruction}

    RemotePolicy(url, name="pi0_bridge", conventions=Conventions(robot="widowx", ...), execute=5, timeout=300,
                 observation=observation)
"""

import argparse

from refinevla_kit.evaluation import evaluate, load_records
from refinevla_kit.policies.remote import RemotePolicy

if __name__ == "__main__":  # evaluate() starts simulator processes, which import this file
    parser = argparse.ArgumentParser()
    parser.add_argument("url", help="ws://127.0.0.1:8000")
    parser.add_argument("--task", default="widowx_carrot_on_plate")
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--output", default="runs/served")
    arguments = parser.parse_args()
    policy = RemotePolicy(arguments.url, timeout=60)
    for record in load_records(
        evaluate(policy, [arguments.task], arguments.episodes, output=arguments.output)
    ):
        print(
            record.policy,
            record.task,
            record.episode_id,
            "success" if record.success_last else "failure",
            record.steps,
        )
