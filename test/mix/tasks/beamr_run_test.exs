defmodule Mix.Tasks.Beamr.RunTest do
  # Standard error is the node's: what other tests write there would be in it.
  use Beamr.Case, async: false

  import ExUnit.CaptureIO

  @moduletag :tmp_dir

  @guest """
  (module
    (memory (export "memory") 1)
    (table (export "t") 5 funcref)
    (func (export "_start"))
    (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
    (func (export "half") (param f64) (result f64) (f64.div (local.get 0) (f64.const 2)))
    (func (export "pair") (param i64) (result i64 i64) (local.get 0) (i64.const 2))
    (func (export "null") (result externref) (ref.null extern))
    (func (export "vector") (result v128) (v128.const i64x2 0x6161616161616161 0x6161616161616161))
    (func (export "trap") unreachable)
    (func (export "loop") (loop (br 0))))
  """

  # Runs the task on the guest; answers its exit code, and what it has printed.
  defp run(context, options, args \\ [], source \\ @guest) do
    path = Path.join(context.tmp_dir, "guest.wat")
    File.write!(path, source)
    run_task(options ++ [path] ++ args)
  end

  defp run_task(argv) do
    test = self()

    errors =
      capture_io(:stderr, fn ->
        output = capture_io(fn -> send(test, {:code, exit_code(argv)}) end)
        send(test, {:output, output})
      end)

    assert_received {:code, code}
    assert_received {:output, output}
    {code, output, errors}
  end

  defp exit_code(argv) do
    Mix.Tasks.Beamr.Run.run(argv)
    0
  catch
    :exit, {:shutdown, code} -> code
  end

  describe "code 0" do
    test "prints results, one a line", context do
      assert {0, "3\n", ""} = run(context, ["--invoke", "add"], ["1", "2"])
      assert {0, "7\n2\n", ""} = run(context, ["--invoke", "pair"], ["7"])
    end

    test "takes negative numbers after the file", context do
      assert {0, "-3\n", ""} = run(context, ["--invoke", "add"], ["-1", "-2"])
    end

    test "takes floats and their atoms", context do
      assert {0, "1.25\n", ""} = run(context, ["--invoke", "half"], ["2.5"])
      assert {0, "2.0\n", ""} = run(context, ["--invoke", "half"], ["4"])
      assert {0, "50.0\n", ""} = run(context, ["--invoke", "half"], ["1.0e2"])

      for n <- ~w(nan infinity neg_infinity),
          do: assert({0, n <> "\n", ""} == run(context, ["--invoke", "half"], [n]))
    end

    test "takes integers of either sign's range", context do
      assert {0, "0\n", ""} = run(context, ["--invoke", "add"], ["4294967295", "1"])
    end

    test "prints vectors as bytes", context do
      assert {0, "<<97, 97, " <> _, ""} = run(context, ["--invoke", "vector"])
    end

    test "prints nil", context do
      assert {0, "nil\n", ""} = run(context, ["--invoke", "null"])
    end

    test "runs _start unless told otherwise", context do
      assert {0, "", ""} = run(context, [])
    end

    test "runs the only function", context do
      source = ~S|(module (memory (export "m") 1) (func (export "f") (result i32) (i32.const 7)))|
      assert {0, "7\n", ""} = run(context, [], [], source)
    end

    test "runs binary files", context do
      # (module (func (export "one") (result i32) (i32.const 1)))
      bytes =
        <<0, "asm", 1, 0, 0, 0, 1, 5, 1, 0x60, 0, 1, 0x7F, 3, 2, 1, 0, 7, 7, 1, 3, "one", 0, 0,
          10, 6, 1, 4, 0, 0x41, 1, 0x0B>>

      assert {0, "1\n", ""} = run(context, [], [], bytes)
    end

    test "within its limits", context do
      options = ~w(--timeout 60000 --max-memory 65536 --max-table-elements 5 --fuel 1000)
      assert {0, "3\n", ""} = run(context, options ++ ["--invoke", "add"], ["1", "2"])
    end
  end

  describe "code 1" do
    test "for a trap, which it tells", context do
      assert {1, "", errors} = run(context, ["--invoke", "trap"])
      assert errors =~ "unreachable instruction executed"
    end

    test "for a trap of the start function", context do
      source = ~S|(module (func $start unreachable) (start $start) (func (export "f")))|
      assert {1, "", _} = run(context, [], [], source)
    end

    test "for no fuel left", context do
      assert {1, "", errors} = run(context, ["--fuel", "1000", "--invoke", "loop"])
      assert errors =~ "out of fuel"
    end
  end

  describe "code 2" do
    test "without a file" do
      assert {2, "", errors} = run_task([])
      assert errors =~ "usage"
    end

    test "without a file but with options" do
      assert {2, "", errors} = run_task(["--timeout", "10"])
      assert errors =~ "usage"
    end

    test "for options that are unknown or wrong", context do
      for options <- [
            ["--nope"],
            ["--timeout", "soon"],
            ["--timeout", "-1"],
            ["--max-memory", "-1"],
            ["--fuel", "1.5"],
            ["--invoke"]
          ] do
        assert {^options, {2, "", _}} = {options, run(context, options)}
      end
    end

    test "for a function that is not there", context do
      assert {2, "", errors} = run(context, ["--invoke", "nope"])
      assert errors =~ ~s|no function "nope"|
    end

    test "for arguments that do not fit", context do
      assert {2, "", errors} = run(context, ["--invoke", "add"], ["1"])
      assert errors =~ "takes 2 argument(s)"
      assert {2, "", errors} = run(context, ["--invoke", "add"], ["1", "4294967296"])
      assert errors =~ "argument 2"
      assert {2, "", _} = run(context, ["--invoke", "add"], ["1", "2.5"])
    end

    test "for arguments that are no numbers", context do
      assert {2, "", errors} = run(context, ["--invoke", "add"], ["1", "two"])
      assert errors =~ "not a number: two"
    end

    test "when it is not clear which function", context do
      source = ~S|(module (func (export "a")) (func (export "b")))|
      assert {2, "", errors} = run(context, [], [], source)
      assert errors =~ "a, b"
    end

    test "when there is no function", context do
      assert {2, "", _} = run(context, [], [], "(module)")
    end
  end

  describe "code 3" do
    test "for a file that is not there" do
      assert {3, "", errors} = run_task(["no/such.wasm"])
      assert errors =~ "no/such.wasm"
    end

    test "for a directory", context do
      assert {3, "", _} = run_task([context.tmp_dir])
    end

    test "for a file that is no module", context do
      for source <- ["", "hello", <<0, "asm", 9, 9, 9, 9>>, "(module (nope))"] do
        assert {3, "", errors} = run(context, [], [], source)
        assert errors =~ "guest.wat"
      end
    end

    test "for a module with imports", context do
      source = ~S|(module (import "env" "i" (func)) (func (export "f")))|
      assert {3, "", errors} = run(context, [], [], source)
      assert errors =~ ~s|"env" "i" is missing|
    end

    test "for a module over its limits", context do
      assert {3, "", errors} =
               run(context, ["--max-memory", "1000", "--invoke", "add"], ["1", "2"])

      assert errors =~ "max_memory"
      assert {3, "", _} = run(context, ["--max-table-elements", "4"])
    end
  end

  describe "code 124" do
    test "when the call's time is up", context do
      assert {124, "", errors} = run(context, ["--timeout", "20", "--invoke", "loop"])
      assert errors =~ "timed out"
    end

    test "when the start function's time is up", context do
      source = ~S|(module (func $start (loop (br 0))) (start $start) (func (export "f")))|
      assert {124, "", _} = run(context, ["--timeout", "20"], [], source)
    end
  end

  describe "a WASI program" do
    @program "test/guests/wasi.wasm"

    test "gets the arguments as they are" do
      for separator <- [[], ["--"]] do
        assert {0, "wasi.wasm\nargs\n-1\n--x\n", ""} ==
                 run_task([@program] ++ separator ++ ["args", "-1", "--x"])
      end

      assert {0, "wasi.wasm\nargs\n--\n", ""} == run_task([@program, "args", "--"])
    end

    test "exits with its own code" do
      for code <- [0, 1, 77, 255],
          do: assert({code, "", ""} == run_task([@program, "exit", "#{code}"]))

      assert {255, "", ""} == run_task([@program, "exit", "-1"])
    end

    test "has the environment that is given, and no other" do
      assert {0, "", ""} == run_task([@program, "env"])

      assert {0, "A=1\nB=x=y\n", ""} ==
               run_task(["--env", "A=1", "--env", "B=x=y", @program, "env"])

      assert {2, "", errors} = run_task(["--env", "A", @program, "env"])
      assert errors =~ "--env A"
    end

    test "has the directories that are given", %{tmp_dir: tmp_dir} do
      File.write!(Path.join(tmp_dir, "file"), "text")
      assert {1, _, ""} = run_task([@program, "cat", Path.join(tmp_dir, "file")])
      file = Path.join(tmp_dir, "file")
      assert {0, "text", ""} == run_task(["--dir", tmp_dir, @program, "cat", file])
      guest = tmp_dir <> "::/data"
      assert {0, "text", ""} == run_task(["--dir", guest, @program, "cat", "/data/file"])

      assert {0, "done\n", ""} ==
               run_task(["--dir", guest, @program, "create", "/data/file", "x"])

      read_only = guest <> ":ro"
      assert {0, "x", ""} == run_task(["--dir", read_only, @program, "cat", "/data/file"])
      assert {1, _, ""} = run_task(["--dir", read_only, @program, "create", "/data/file", "y"])
      assert {3, "", errors} = run_task(["--dir", "no/such", @program])
      assert errors =~ "no/such"
    end

    test "writes to standard error" do
      assert {0, "to stdout\n", "to stderr\n"} == run_task([@program, "both"])
    end

    test "that traps, or takes too long, is told of" do
      assert {1, "", errors} = run_task([@program, "abort"])
      assert errors =~ "unreachable"
      assert {124, "", _errors} = run_task(["--timeout", "20", @program, "sleep", "10000"])
    end

    test "has functions that can be called" do
      argv = ["--invoke", "initialized", "test/guests/reactor.wasm"]
      assert {0, "1\n", ""} == run_task(argv)
      argv = ["--invoke", "say", "test/guests/reactor.wasm", "5"]
      assert {0, "number 5\n", ""} == run_task(argv)
    end

    test "has the streams of the operating system, byte for byte", %{tmp_dir: tmp_dir} do
      bytes = for(byte <- 0..255, into: "", do: <<byte>>) <> "\nlast"
      input = Path.join(tmp_dir, "input")
      output = Path.join(tmp_dir, "output")
      File.write!(input, bytes)
      command = "mix beamr.run #{@program} cat < #{input} > #{output}; echo $?"
      assert {"0\n", 0} = System.cmd("sh", ["-c", command], env: [{"MIX_ENV", "test"}])
      assert File.read!(output) == bytes
      command = "mix beamr.run #{@program} exit 42 < /dev/null"
      assert {"", 42} = System.cmd("sh", ["-c", command], env: [{"MIX_ENV", "test"}])
    end
  end

  test "the codes are the operating system's", context do
    path = Path.join(context.tmp_dir, "guest.wat")
    File.write!(path, @guest)

    mix = fn args ->
      System.cmd("mix", ["beamr.run" | args], stderr_to_stdout: true, env: [{"MIX_ENV", "test"}])
    end

    assert {"3\n", 0} = mix.(["--invoke", "add", path, "1", "2"])
    assert {_output, 1} = mix.(["--invoke", "trap", path])
    assert {_output, 124} = mix.(["--timeout", "20", "--invoke", "loop", path])
  end
end
