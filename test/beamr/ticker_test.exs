defmodule Beamr.TickerTest do
  # The thread that ends the slices of guests, as Linux tells of it. Not beside other tests, whose
  # guests it is there for too.
  use Beamr.Case, async: false

  alias Beamr.{CallError, Trap}

  @threads "/proc/self/task"

  unless File.dir?(@threads), do: @moduletag(skip: "there is no #{@threads}")

  # Counts with the local $n: much longer than a tick.
  @many_ticks """
  (loop $again
    (br_if $again (i32.ne (i32.const 100000000)
      (local.tee $n (i32.add (local.get $n) (i32.const 1))))))
  """

  # How often it has gone to sleep, be it for one tick.
  defp sleeps do
    [thread] =
      for thread <- File.ls!(@threads),
          {:ok, "beamr-ticker\n"} <- [File.read(Path.join([@threads, thread, "comm"]))],
          do: thread

    status = File.read!(Path.join([@threads, thread, "status"]))
    [_, count] = Regex.run(~r/^voluntary_ctxt_switches:\s*(\d+)$/m, status)
    String.to_integer(count)
  end

  defp rests? do
    before = sleeps()
    Process.sleep(30)
    sleeps() == before
  end

  test "rests when no guest runs, however the last ones ended" do
    wasm = Beamr.instantiate!(endless())
    assert {:error, %CallError{reason: :timeout}} = Beamr.call(wasm, "count", [], timeout: 20)
    eventually(&rests?/0)

    task = start_endless(wasm)
    refute rests?()
    kill(task.pid)
    eventually(&rests?/0)

    closing = Beamr.instantiate!(endless())
    task = start_endless(closing)
    Beamr.close(closing)
    assert {:error, %CallError{reason: :closed}} = Task.await(task)
    eventually(&rests?/0)

    trap = """
    (module
      (func (export "f") (local $n i32)
        #{@many_ticks}
        unreachable))
    """

    assert {:error, %Trap{}} = Beamr.call(Beamr.instantiate!(trap), "f", [])
    eventually(&rests?/0)
  end

  test "rests while a guest waits for an import that it has called after many ticks" do
    test = self()

    late = """
    (module
      (import "env" "wait" (func $wait))
      (func (export "f") (local $n i32)
        #{@many_ticks}
        (call $wait)))
    """

    wait = fn _wasm ->
      send(test, {:waiting, self()})
      receive(do: (:go_on -> :ok))
    end

    wasm = Beamr.instantiate!(late, imports: %{"env" => %{"wait" => wait}})
    task = Task.async(fn -> Beamr.call(wasm, "f", [], timeout: :infinity) end)
    assert_receive {:waiting, pid}, 60_000
    eventually(&rests?/0)
    send(pid, :go_on)
    assert Task.await(task) == {:ok, []}
  end

  test "is woken by a guest that runs on" do
    wasm = Beamr.instantiate!(endless())

    for scheduler <- [:auto, :normal, :dirty] do
      eventually(&rests?/0)
      options = [timeout: 20, scheduler: scheduler]
      assert {:error, %CallError{reason: :timeout}} = Beamr.call(wasm, "count", [], options)
    end
  end

  test "is woken by a guest that goes on after a slice" do
    # On normal schedulers, because OTP 25 cannot suspend a process that runs on a dirty one.
    wasm = Beamr.instantiate!(endless())
    options = [timeout: 2_000, scheduler: :normal]
    task = Task.async(fn -> Beamr.call(wasm, "count", [], options) end)
    eventually(fn -> counter(wasm) > 0 end)
    :erlang.suspend_process(task.pid)
    eventually(&rests?/0)
    :erlang.resume_process(task.pid)
    assert {:error, %CallError{reason: :timeout}} = Task.await(task)
  end

  test "is woken by a guest that has rested and calls an import at once" do
    test = self()

    guest = """
    (module
      (import "env" "long" (func $long))
      (import "env" "next" (func $next))
      (memory (export "memory") 1)
      (func (export "f")
        (loop $again
          (i32.store (i32.const 0) (i32.const 1))
          (br_if $again (i32.eqz (i32.load (i32.const 8)))))
        (call $long)
        (call $next)))
    """

    long = fn _wasm -> Process.sleep(1_100) end
    next = fn _wasm -> send(test, :next) end
    wasm = Beamr.instantiate!(guest, imports: %{"env" => %{"long" => long, "next" => next}})
    options = [timeout: 1_000, scheduler: :normal]
    task = Task.async(fn -> Beamr.call(wasm, "f", [], options) end)
    eventually(fn -> counter(wasm) > 0 end)
    :erlang.suspend_process(task.pid)
    eventually(&rests?/0)
    Beamr.IO.write!(wasm, 8, <<1>>)
    :erlang.resume_process(task.pid)
    assert {:error, %CallError{reason: :timeout}} = Task.await(task)
    refute_received :next
  end

  test "is woken by a guest that goes on after an import" do
    loop = """
    (module
      (import "env" "rest" (func $rest))
      (memory (export "memory") 1)
      (func (export "f")
        (call $rest)
        (i32.store (i32.const 0) (i32.const 1))
        (loop $again (br $again))))
    """

    imports = %{"env" => %{"rest" => fn _wasm -> eventually(&rests?/0) end}}
    wasm = Beamr.instantiate!(loop, imports: imports)
    assert {:error, %CallError{reason: :timeout}} = Beamr.call(wasm, "f", [], timeout: 3_000)
    # It has not ended in the import.
    assert counter(wasm) == 1
  end
end
