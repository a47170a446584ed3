defmodule Beamr.Case do
  @moduledoc false
  # What the tests have in common. Guests are written out in each test, but for these pieces.

  use ExUnit.CaseTemplate

  alias Beamr.Instance

  using do
    quote do
      import Beamr.Case
    end
  end

  @doc "A guest's `malloc` that only ever moves on, and a `free` that notes its argument at 0."
  def bump_malloc do
    """
    (global $next (mut i32) (i32.const 1024))
    (func $malloc (export "malloc") (param $size i32) (result i32)
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get $size))))
    (func $free (export "free") (param $pointer i32)
      (i32.store (i32.const 0) (local.get $pointer)))
    """
  end

  @doc """
  A guest that never ends: `count` adds 1 to the i64 at 0 for ever, `get` answers it; `f` ends at
  once.
  """
  def endless do
    """
    (module
      (memory (export "memory") 1)
      (func $count (export "count")
        (loop $again
          (i64.store (i32.const 0) (i64.add (i64.load (i32.const 0)) (i64.const 1)))
          (br $again)))
      (func (export "get") (result i64) (i64.load (i32.const 0)))
      (func (export "f") (result i32) (i32.const 7)))
    """
  end

  @doc "Where the guest of `endless/0` has got to."
  def counter(wasm) do
    <<count::little-64>> = Beamr.IO.read!(wasm, 0, 8)
    count
  end

  @doc "Starts `count` of an instance of `endless/0` in a task, and waits until it is running."
  def start_endless(wasm) do
    task = Task.async(fn -> Beamr.call(wasm, "count", [], timeout: :infinity) end)
    eventually(fn -> counter(wasm) > 0 end)
    task
  end

  @doc """
  An instance whose `hold` calls an import that waits until its process is told to `:go_on`; and
  `next` counts its calls. `start_hold/1` calls the one and waits until it is held.
  """
  def holder do
    test = self()

    hold = fn _wasm ->
      send(test, {:held, self()})

      receive do
        :go_on -> :ok
      end
    end

    Beamr.instantiate!(
      """
      (module
        (import "env" "hold" (func $hold))
        (global $n (mut i32) (i32.const 0))
        (memory (export "memory") 1)
        (func (export "hold") (call $hold))
        (func (export "next") (result i32)
          (global.set $n (i32.add (global.get $n) (i32.const 1)))
          (global.get $n)))
      """,
      imports: %{"env" => %{"hold" => hold}}
    )
  end

  @doc "Starts `hold` of `holder/0` in a task, and waits until the instance is busy with it."
  def start_hold(%Instance{} = wasm) do
    task = Task.async(fn -> Beamr.call(wasm, "hold", [], timeout: :infinity) end)
    pid = task.pid
    assert_receive {:held, ^pid}, 10_000
    task
  end

  @doc "Waits for what no message tells of. A test that waits for ever fails by ExUnit's timeout."
  def eventually(condition) do
    unless condition.() do
      receive do
      after
        1 -> eventually(condition)
      end
    end
  end

  @doc "Waits until a process waits for a message. One that has ended fails the test."
  def await_waiting(pid) do
    eventually(fn ->
      assert {:status, status} = Process.info(pid, :status)
      status == :waiting
    end)
  end

  @doc "Kills a process and waits until it is gone."
  def kill(pid) do
    monitor = Process.monitor(pid)
    Process.unlink(pid)
    Process.exit(pid, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^pid, _reason}, 10_000
  end

  @doc """
  The term, but of a type that the compiler does not know. It warns of calls with what their guards
  refuse, where it sees that.
  """
  def untyped(term), do: term

  @doc "The binary with `bytes` in the place of as many, from `at` on."
  def overwrite(binary, at, bytes) do
    {before, rest} = :erlang.split_binary(binary, at)
    {_overwritten, rest} = :erlang.split_binary(rest, byte_size(bytes))
    before <> bytes <> rest
  end

  @doc """
  Runs a property on `count` random cases. A case's seed comes from ExUnit's, and is printed
  when the case fails.
  """
  def for_random_cases(count, property) do
    for n <- 1..count do
      seed = {ExUnit.configuration()[:seed], :erlang.phash2(property), n}
      :rand.seed(:exsss, seed)

      try do
        property.()
      rescue
        error ->
          IO.puts(:stderr, "failed on the random case of :rand.seed(:exsss, #{inspect(seed)})")
          reraise error, __STACKTRACE__
      end
    end
  end

  @doc "An integer from `low` to `high`, the ends as likely as all between."
  def random_integer(low, high) do
    case :rand.uniform(8) do
      1 -> low
      2 -> high
      _ -> low + :rand.uniform(high - low + 1) - 1
    end
  end
end
