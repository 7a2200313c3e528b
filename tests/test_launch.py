import pytest

import train
from gnet_jax.config.command import Launch, parse_command, parse_launch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coordinator", "a"], "--coordinator is 'a'; it must be HOST:PORT"),
        (["--coordinator", "a:99999"], "--coordinator is 'a:99999'; it must be HOST:PORT"),
        (["--num-processes", "0"], "--num-processes is 0; it must be at least 1"),
        (["--num-processes", "2", "--process-id", "2"], "--process-id is 2; it must be below 2"),
        (["--process-id", "-1"], "--process-id is -1; it must be at least 0"),
        (
            ["--distributed", "off", "--process-id", "0"],
            "--process-id is given, but --distributed is off; remove one of them",
        ),
        (["--start-timeout", "0"], "--start-timeout is 0; it must be at least 1"),
        (["--restart-delay", "-1"], "--restart-delay is -1.0; it must be at least 0"),
        (["--restart-delay", "nan"], "--restart-delay is nan; it must be finite"),
        (["--supervise", "--epochs", "0"], "epochs is 0.0; it must be above 0"),
    ],
)
def test_a_launch_that_cannot_be_is_one_sentence_and_exit_code_2(arguments, message, capsys):
    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_launch_lies_beside_the_fields_and_is_no_part_of_the_config():
    launch = ("--supervise", "--coordinator", "a:1", "--num-processes", "2", "--process-id", "1")
    command = parse_command(["digits", "--epochs", "3", *launch], "train.py", Launch())
    assert command.options == Launch(
        supervise=True, coordinator="a:1", num_processes=2, process_id=1
    )
    assert command.config == train.parse(["digits", "--epochs", "3"])


def test_the_launch_is_understood_where_the_rest_is_not():
    arguments = ["nowhere.py", "--epochs", "3", "--coordinator", "a:1", "--help"]
    assert parse_launch(arguments) == Launch(coordinator="a:1")
