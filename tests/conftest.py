import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: threads must not spin on a shared machine
