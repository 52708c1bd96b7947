"""Kernels that are ready at once: each a process of its own, forked from one that has imported what every page imports."""
import multiprocessing
import os
import signal
import time

PRELOAD = ["torch", "transformers.models.auto.modeling_auto", "transformers.modeling_utils", "transformers.tokenization_utils_tokenizers",
           "pandas", "scipy.stats", "sklearn.linear_model", "matplotlib.pyplot", "seaborn", "ipywidgets", "ipykernel.kernelapp"]


def serve(argv, cwd, env):
    "Become a kernel."
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    from ipykernel.kernelapp import launch_new_instance
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1) # What it says of itself; outputs of cells go another way
    launch_new_instance(argv=[*argv, "--log-level=ERROR"])


class Kernel:
    "A forked kernel with the face of `subprocess.Popen`."
    stdin = stdout = stderr = None

    def __init__(self, argv, cwd, env):
        self.process = multiprocessing.get_context("forkserver").Process(target=serve, args=(argv, cwd, env))
        self.process.start()
        self.pid = self.process.pid
        while os.getpgid(self.pid) != self.pid: time.sleep(.001) # Until it leads a group: signals go to all of that, and not to us

    returncode = property(lambda self: self.process.exitcode)

    def poll(self): return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, signum): os.kill(self.pid, signum)

    def terminate(self): self.send_signal(signal.SIGTERM)

    def kill(self): self.send_signal(signal.SIGKILL)


def launch(cmd, env=None, cwd=None, **kw):
    "In the place of `jupyter_client.launcher.launch_kernel`."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline") # Pages show their figures; read when it is imported
    return Kernel(cmd[cmd.index("-f"):], str(cwd or os.getcwd()), {**(os.environ if env is None else env)})
