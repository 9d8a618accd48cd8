"""A hospital of NVFlare that does not train: it sends back what it got. Started by `nvflare_noop.py`."""

import nvflare.client as flare

if __name__ == "__main__":
    flare.init()
    while flare.is_running():
        model = flare.receive()
        flare.send(flare.FLModel(params=model.params, metrics={"accuracy": 0.5}, meta={"NUM_STEPS_CURRENT_ROUND": 1}))
