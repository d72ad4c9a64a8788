"""An executor on pymesos: tells what it saw on stdout, and does what tasks say in their data."""

import base64
import sys
import threading
import time

from pymesos import Executor, MesosExecutorDriver
from pymesos.utils import encode_data


class Scripted(Executor):
    """`data` of a task: `run` stays until it is killed, anything else ends at once."""

    def registered(self, driver, executor_info, framework_info, agent_info):
        print("registered", executor_info["executor_id"]["value"], framework_info["name"], agent_info["hostname"], flush=True)

    def reregistered(self, driver, agent_info):
        print("reregistered", agent_info["hostname"], flush=True)

    def disconnected(self, driver):
        print("disconnected", flush=True)

    def update(self, driver, task_id, state):
        driver.sendStatusUpdate({"task_id": task_id, "state": state, "executor_id": driver.executor_id})

    def launchTask(self, driver, task):
        data = base64.b64decode(task["data"]).decode()
        print("launch", task["task_id"]["value"], data, flush=True)

        def work():
            self.update(driver, task["task_id"], "TASK_RUNNING")
            if data != "run":
                self.update(driver, task["task_id"], "TASK_FINISHED")

        threading.Thread(target=work).start()

    def killTask(self, driver, task_id):
        print("kill", task_id["value"], flush=True)
        threading.Thread(target=self.update, args=(driver, task_id, "TASK_KILLED")).start()

    def frameworkMessage(self, driver, message):
        print("message", base64.b64decode(message).decode(), flush=True)
        driver.sendFrameworkMessage(encode_data(b"pong"))

    def shutdown(self, driver):
        print("shutdown", flush=True)

    def error(self, driver, message):
        print("error", message, flush=True)


if __name__ == "__main__":
    driver = MesosExecutorDriver(Scripted(), use_addict=False)
    driver.run()
    sys.exit(0)
