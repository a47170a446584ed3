defmodule Beamr.Host.Clean.ConsoleTest do
  use Beamr.CleanCase

  import ExUnit.CaptureIO

  defp console(name, args, result, opts \\ []) do
    clean(name, args, result, [grant: [:console]] ++ opts)
  end

  for {name, args, written} <- [
        {"print", ["héllo"], "héllo"},
        {"print_string", ["a"], "a"},
        {"printl", ["a"], "a\n"},
        {"console_log", ["a"], "a\n"}
      ] do
    test "#{name} writes a string, in both forms" do
      for form <- [:pair, :pointer] do
        write = fn -> console(unquote(name), unquote(args), nil, form: form) end
        assert capture_io(write) == unquote(written)
      end
    end
  end

  for {name, args, written} <- [
        {"print_integer", [i64: -9_007_199_254_740_993], "-9007199254740993\n"},
        {"print_integer", [i32: 7], "7\n"},
        {"print_float", [f64: 1.0], "1\n"},
        {"print_float", [f64: 1.0e21], "1e+21\n"},
        {"print_float", [f64: :nan], "NaN\n"},
        {"print_boolean", [i32: 1], "true\n"},
        {"print_boolean", [i32: 0], "false\n"}
      ] do
    test "#{name} of #{inspect(args)}" do
      write = fn -> console(unquote(name), unquote(args), nil) end
      assert capture_io(write) == unquote(written)
    end
  end

  test "console_error and console_warn write to standard error" do
    # A device of its own: standard error is everybody's.
    {:ok, device} = StringIO.open("")
    hosts = [{Beamr.Host.Clean.Console, errors: device}]

    for name <- ["console_error", "console_warn"] do
      assert capture_io(fn -> console(name, ["oh"], nil, hosts: hosts) end) == ""
    end

    assert StringIO.contents(device) == {"", "oh\noh\n"}
    assert Beamr.Host.Clean.Console.init(nil).errors == :stderr
  end

  test "output goes to the device that is given" do
    {:ok, device} = StringIO.open("")
    hosts = [{Beamr.Host.Clean.Console, output: device}]
    assert capture_io(fn -> console("print", ["x"], nil, hosts: hosts) end) == ""
    assert StringIO.contents(device) == {"", "x"}
  end

  # What is answered and what is written, for lines that are typed.
  defp asked(name, args, result, typed, opts \\ []) do
    test = self()

    written =
      capture_io(typed, fn -> send(test, {:answer, console(name, args, result, opts)}) end)

    assert_received {:answer, answer}
    {answer, written}
  end

  test "input writes the prompt and reads a line" do
    for name <- ["input", "console_input"], form <- [:pair, :pointer] do
      assert asked(name, ["name? "], :string, "Zoë\nmore\n", form: form) == {"Zoë", "name? "}
    end

    assert asked("input", [""], :string, "a\r\n") == {"a", ""}
  end

  test "input is empty at the end" do
    assert asked("input", ["? "], :string, "") == {"", "? "}
  end

  test "input_integer reads a number" do
    for {form, type} <- [pair: :i64, pointer: :i32],
        {typed, n} <- [{"42\n", 42}, {"-7x", -7}, {"x", 0}, {"", 0}] do
      assert asked("input_integer", ["n"], type, typed, form: form) == {n, "n"}
    end
  end

  test "input_float reads a number" do
    for form <- [:pair, :pointer], {typed, x} <- [{"1.5\n", 1.5}, {"1e2", 100.0}, {"x", 0.0}] do
      assert asked("input_float", ["x"], :f64, typed, form: form) == {x, "x"}
    end
  end

  test "input_yesno knows a yes" do
    for form <- [:pair, :pointer],
        {typed, yes} <- [{"y\n", 1}, {"YES\n", 1}, {" true\n", 1}, {"1", 1}, {"no\n", 0}, {"", 0}] do
      assert asked("input_yesno", ["?"], :i32, typed, form: form) == {yes, "?"}
    end
  end

  test "input_range brings a number into its range" do
    for {typed, n} <- [{"5\n", 5}, {"99\n", 10}, {"-3\n", 1}, {"x\n", 1}, {"", 1}] do
      assert asked("input_range", ["?", {:i32, 1}, {:i32, 10}], :i32, typed) == {n, "?"}
    end
  end

  test "a string outside the memory is not written" do
    assert capture_io(fn -> console("printl", [i32: -8, i32: 100], nil) end) == ""
  end

  test "in a server, output goes where the server's goes" do
    wat = ~S|(module (import "env" "print" (func $p (param i32 i32))) (memory (export "memory") 1)
      (data (i32.const 8) "here") (func (export "f") (call $p (i32.const 8) (i32.const 4))))|

    {:ok, device} = StringIO.open("")
    leader = Process.group_leader()
    Process.group_leader(self(), device)
    {:ok, server} = Beamr.start_link(module: wat, hosts: [Beamr.Host.Clean.Console])
    Process.group_leader(self(), leader)
    assert Beamr.call(server, "f", []) == {:ok, []}
    assert StringIO.contents(device) == {"", "here"}
  end
end
