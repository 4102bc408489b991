"""Has emails judged, and answered or put aside: two made-up ones, or a real one from a file."""

import argparse
from uuid import uuid4

from hosting.instance import add_waiting_arguments, announce, start_or_resume
from hosting.program import run
from hosting.scheduler import scheduler_client
from hosting.terminal import printable
from hosting.waiting import result_of

import grpc
from durabletask.client import OrchestrationStatus, TaskHubGrpcClient
from email_file import read_email
from models import Email

ORCHESTRATION = "spam_detection_orchestration"

LEGITIMATE = """\
From: Ada Miller <ada@example.com>
To: John Smith <john@example.com>
Subject: Quarterly report

Hi John, I hope you are doing well. Following up on our meeting yesterday about the quarterly report:
could you please send me the updated figures by Friday? Best regards, Ada"""

SPAM = """\
From: Prize Office <winner@prizes.example>
To: John Smith <john@example.com>
Subject: URGENT: claim your prize

URGENT! You've won $1,000,000! Click here now to claim your prize! Limited time offer! Don't miss out!"""


def main() -> None:
    """Start an orchestration for each email, or find one that was started earlier, and print how each ends."""
    arguments = parse_arguments()
    emails = [] if arguments.instance else [email_from(arguments.file)] if arguments.file else made_up_emails()
    with scheduler_client() as client:
        # All are started before the first is waited for: they run at the same time.
        instances = [hand_over(client, email) for email in emails]
        for instance in instances or [start_or_resume(client, ORCHESTRATION, arguments.instance)]:
            if arguments.no_wait:
                announce(instance)
                continue
            print(f"Orchestration: {instance}", flush=True)
            state = result_of(client, instance, arguments.timeout)
            print(f"\n{quoted(str((state.get_input() or {}).get('email_content', '')))}\n")
            print(f"{printable(state.get_output())}\n", flush=True)


def hand_over(client: TaskHubGrpcClient, email: Email) -> str:
    """Start an orchestration that has the email's id as its own: handed over twice, an email is handled once."""
    state = client.get_orchestration_state(email.email_id, fetch_payloads=False)
    failed = state and state.runtime_status in (OrchestrationStatus.FAILED, OrchestrationStatus.TERMINATED)
    if failed:
        client.purge_orchestration(email.email_id)
    if failed or not state:
        try:
            return client.schedule_new_orchestration(ORCHESTRATION, input=email, instance_id=email.email_id)
        except grpc.RpcError as error:
            if "ALREADY_EXISTS" not in str(error):  # otherwise another client was quicker
                raise
    print("This email was handed over before.", flush=True)
    return email.email_id


def made_up_emails() -> list[Email]:
    """A legitimate and a spam email, with new ids in each run: an email that was handled is not handled again."""
    made_up = (("report", LEGITIMATE), ("prize", SPAM))
    return [Email(email_id=f"{name}-{uuid4().hex[:6]}", email_content=text) for name, text in made_up]


def email_from(path: str) -> Email:
    """The email in a file, or in standard input. Raises UsageError if there is none."""
    email, remarks = read_email(path)
    for remark in remarks:
        print(printable(remark), flush=True)
    return email


def quoted(text: str, most: int = 12) -> str:
    """The first lines of a text, marked as a quotation."""
    lines = printable(text).splitlines()
    return "\n".join([f"  | {line[:110]}".rstrip() for line in lines[:most]] + (["  | …"] if len(lines) > most else []))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", help="an email (.eml), or - for standard input (default: two made-up ones)")
    add_waiting_arguments(parser)
    arguments = parser.parse_args()
    if arguments.instance is not None and arguments.file is not None:
        parser.error("--instance comes back to an email that was handed over: give one or the other")
    return arguments


if __name__ == "__main__":
    run(main)
