defmodule Beamr.CallsTest do
  # How a call ends: by itself, in time, by an interrupt, by a death, by a close, at any depth.
  use Beamr.Case, async: true

  alias Beamr.{CallError, ImportError, Trap}

  @modes [:auto, :normal, :dirty]

  # `f` answers what the import does of its argument, plus 1. `count` is endless, and counts at 0;
  # `f_count` calls the import first.
  @guest """
  (module
    (import "env" "i" (func $i (param i32) (result i32)))
    (memory (export "memory") 1)
    #{"GLOBALS"}
    (func $count (export "count")
      (loop $again
        (i64.store (i32.const 0) (i64.add (i64.load (i32.const 0)) (i64.const 1)))
        (br $again)))
    (func (export "f") (param i32) (result i32)
      (i32.add (call $i (local.get 0)) (i32.const 1)))
    (func (export "f_count") (param i32) (drop (call $i (local.get 0))) (call $count))
    (func (export "add") (param i32 i32) (result i32)
      (i32.add (local.get 0) (local.get 1)))
    (func (export "div") (param i32 i32) (result i32)
      (i32.div_s (local.get 0) (local.get 1)))
    (func (export "spin") (param i32) (result i32) (local $sum i32)
      (loop $again
        (local.set $sum (i32.add (local.get $sum) (local.get 0)))
        (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
      (local.get $sum))
    (func (export "trap") unreachable)
    (func (export "ok") (result i32) (i32.const 7)))
  """

  defp guest(import \\ fn _wasm, n -> n end, opts \\ []) do
    source = String.replace(@guest, "GLOBALS", bump_malloc())
    Beamr.instantiate!(source, [imports: %{"env" => %{"i" => import}}] ++ opts)
  end

  # An import that tells the test that it has been reached, and waits to be told to go on.
  defp holding do
    test = self()

    fn _wasm, n ->
      send(test, {:held, self()})
      receive do: (:go_on -> n)
    end
  end

  defp held(task) do
    pid = task.pid
    assert_receive {:held, ^pid}, 10_000
    task
  end

  defp start_count(wasm, opts \\ []) do
    :ok = Beamr.IO.write(wasm, 0, <<0::64>>)
    task = Task.async(fn -> Beamr.call(wasm, "count", [], [timeout: :infinity] ++ opts) end)
    eventually(fn -> counter(wasm) > 0 end)
    task
  end

  defp start_waiting(function) do
    task = Task.async(function)
    await_waiting(task.pid)
    task
  end

  # In a process of its own, with its result, what it found in its mailbox and how long it took.
  defp alone(function) do
    Task.async(fn ->
      started = System.monotonic_time(:millisecond)
      result = function.()
      taken = System.monotonic_time(:millisecond) - started
      {:messages, messages} = Process.info(self(), :messages)
      {result, messages, taken}
    end)
    |> Task.await(60_000)
  end

  # What `spin` answers: 1 + 2 + ... + n, as an i32.
  defp sum(n) do
    <<sum::signed-32>> = <<div(n * (n + 1), 2)::32>>
    sum
  end

  defp assert_usable(wasm), do: assert(Beamr.call(wasm, "ok", []) == {:ok, [7]})

  describe "scheduler:" do
    for mode <- @modes do
      test "#{mode} answers what is right, in one slice and in many" do
        wasm = guest()
        opts = [scheduler: unquote(mode), timeout: :infinity]
        assert Beamr.call(wasm, "add", [2, 3], opts) == {:ok, [5]}
        assert Beamr.call(wasm, "f", [41], opts) == {:ok, [42]}
        assert Beamr.call(wasm, "spin", [50_000_000], opts) == {:ok, [sum(50_000_000)]}
      end

      test "#{mode} runs start functions too" do
        wasm =
          Beamr.instantiate!(
            """
            (module (memory (export "memory") 1) (func $start (local $n i32)
                (loop $again (br_if $again (i32.ne (i32.const 20000000)
                  (local.tee $n (i32.add (local.get $n) (i32.const 1))))))
                (i32.store (i32.const 0) (local.get $n)))
              (start $start))
            """,
            scheduler: unquote(mode)
          )

        assert Beamr.IO.read(wasm, 0, 4) == {:ok, <<20_000_000::little-32>>}
      end

      test "#{mode} runs imports in the calling process" do
        test = self()

        wasm =
          guest(fn _wasm, n ->
            send(test, {:ran_in, self()})
            n
          end)

        assert Beamr.call(wasm, "f", [1], scheduler: unquote(mode)) == {:ok, [2]}
        assert_received {:ran_in, ^test}
      end

      test "#{mode}: a looping guest leaves processes and other instances running" do
        loops =
          for _ <- 1..(System.schedulers_online() + 1) do
            wasm = guest()
            {wasm, start_count(wasm, scheduler: unquote(mode))}
          end

        neighbour = guest()

        for other <- @modes, _ <- 1..10 do
          assert Beamr.call(neighbour, "f", [1], scheduler: other) == {:ok, [2]}
          assert Task.await(Task.async(fn -> :answer end)) == :answer
        end

        for {wasm, task} <- loops do
          Beamr.interrupt(wasm)
          assert {:error, %CallError{reason: :interrupted}} = Task.await(task)
        end
      end

      test "#{mode}: a guest whose process is killed ends" do
        wasm = guest()

        for _ <- 1..10 do
          task = start_count(wasm, scheduler: unquote(mode))
          kill(task.pid)
          assert_usable(wasm)
        end
      end

      test "#{mode}: an import's process that is killed lets others in" do
        wasm = guest(holding())

        for _ <- 1..10 do
          opts = [scheduler: unquote(mode), timeout: :infinity]
          task = held(Task.async(fn -> Beamr.call(wasm, "f", [1], opts) end))
          kill(task.pid)
          assert_usable(wasm)
        end
      end

      test "#{mode} waits for its turn as any call does" do
        wasm = guest(holding())
        task = held(Task.async(fn -> Beamr.call(wasm, "f", [1]) end))

        waiting = start_waiting(fn -> Beamr.call(wasm, "ok", [], scheduler: unquote(mode)) end)

        send(task.pid, :go_on)
        assert Task.await(waiting) == {:ok, [7]}
      end
    end

    test "is one of three" do
      wasm = guest()

      for mode <- [nil, :fast, "auto", 1], function <- [:call, :instantiate] do
        assert_raise ArgumentError, ~r/:scheduler must be :auto, :normal or :dirty/, fn ->
          case function do
            :call -> Beamr.call(wasm, "ok", [], scheduler: mode)
            :instantiate -> Beamr.instantiate("(module)", scheduler: mode)
          end
        end
      end
    end

    test "may differ between the levels of a nest" do
      modes = List.to_tuple(@modes)

      down = fn
        _wasm, 0 ->
          0

        wasm, n ->
          opts = [scheduler: elem(modes, rem(n, 3)), timeout: :infinity]
          hd(Beamr.call!(wasm, "f", [n - 1], opts))
      end

      assert Beamr.call(guest(down), "f", [12], scheduler: :dirty) == {:ok, [13]}
    end
  end

  describe "timeout:" do
    test "is milliseconds or :infinity" do
      wasm = guest()

      for timeout <- [-1, 1.5, nil, :never, 2 ** 32], function <- [:call, :instantiate] do
        assert_raise ArgumentError, ~r/:timeout must be/, fn ->
          case function do
            :call -> Beamr.call(wasm, "ok", [], timeout: timeout)
            :instantiate -> Beamr.instantiate("(module)", timeout: timeout)
          end
        end
      end
    end

    for mode <- @modes do
      test "ends a loop of #{mode}, and the instance stays usable" do
        wasm = guest()

        for timeout <- [0, 1, 20] do
          {result, messages, taken} =
            alone(fn ->
              Beamr.call(wasm, "count", [], timeout: timeout, scheduler: unquote(mode))
            end)

          assert {:error, %CallError{reason: :timeout, function: "count"}} = result
          assert messages == []
          assert taken >= timeout and taken < 10_000
          assert_usable(wasm)
        end
      end

      test "ends an endless start function of #{mode}" do
        {result, messages, taken} =
          alone(fn ->
            Beamr.instantiate("(module (func $f (loop (br 0))) (start $f))",
              timeout: 20,
              scheduler: unquote(mode)
            )
          end)

        assert {:error, %CallError{reason: :timeout, function: nil}} = result
        assert messages == []
        assert taken in 20..9_999
      end
    end

    test "counts the time that an import takes: the guest does not go on after it" do
      wasm =
        guest(fn _wasm, n ->
          Process.sleep(50)
          n
        end)

      assert {:error, %CallError{reason: :timeout}} = Beamr.call(wasm, "f", [1], timeout: 10)
      refute_received _
      assert_usable(wasm)
    end

    test "counts the time that an import of a start function takes" do
      assert {:error, %CallError{reason: :timeout, function: nil}} =
               Beamr.instantiate(
                 ~S|(module (import "env" "i" (func $i)) (func $s (call $i)) (start $s))|,
                 imports: %{"env" => %{"i" => fn _wasm -> Process.sleep(50) end}},
                 timeout: 10
               )
    end

    test "of 0 lets no import run" do
      test = self()
      wasm = guest(fn _wasm, n -> send(test, n) end)
      assert {:error, %CallError{reason: :timeout}} = Beamr.call(wasm, "f", [1], timeout: 0)
      refute_received _
    end

    test "of a nested call ends that call only" do
      test = self()

      wasm =
        guest(fn wasm, n ->
          send(test, {:inner, Beamr.call(wasm, "count", [], timeout: 10)})
          n
        end)

      assert Beamr.call(wasm, "f", [1], timeout: :infinity) == {:ok, [2]}
      assert_received {:inner, {:error, %CallError{reason: :timeout, function: "count"}}}
      refute_received _
    end

    test "of a nested call is counted anew for the next one" do
      test = self()

      wasm =
        guest(fn wasm, n ->
          for _ <- 1..3, do: send(test, Beamr.call(wasm, "count", [], timeout: 5))
          send(test, Beamr.call(wasm, "spin", [30_000_000], timeout: 30_000))
          n
        end)

      assert Beamr.call(wasm, "f", [1], timeout: 60_000) == {:ok, [2]}
      for _ <- 1..3, do: assert_received({:error, %CallError{reason: :timeout}})
      assert_received {:ok, [_sum]}
    end

    test "of an outer call ends the calls inside it as well" do
      test = self()

      wasm =
        guest(fn wasm, n ->
          send(test, {:inner, Beamr.call(wasm, "count", [], timeout: 30_000)})
          n
        end)

      {result, messages, taken} = alone(fn -> Beamr.call(wasm, "f", [1], timeout: 50) end)
      assert {:error, %CallError{reason: :timeout, function: "f"}} = result
      assert messages == []
      assert taken in 50..9_999
      assert_received {:inner, {:error, %CallError{reason: :timeout, function: "count"}}}
      assert_usable(wasm)
    end

    test "that a call inside it has seen ends the outer call as soon as the import returns" do
      test = self()

      imports = %{
        "env" => %{
          "wait" => fn wasm ->
            send(test, :waited)
            Process.sleep(30)
            send(test, Beamr.call(wasm, "inner", []))
          end,
          "nop" => fn _wasm -> :ok end
        }
      }

      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "wait" (func $wait))
            (import "env" "nop" (func $nop))
            (func (export "inner") (call $nop))
            (func (export "outer") (loop (call $wait) (br 0))))
          """,
          imports: imports
        )

      for _ <- 1..10 do
        assert {:error, %CallError{reason: :timeout, function: "outer"}} =
                 Beamr.call(wasm, "outer", [], timeout: 20)

        assert_received :waited
        assert_received {:error, %CallError{reason: :timeout, function: "inner"}}
        refute_received _
      end
    end

    test "of an outer call ends calls of other instances inside it as well" do
      other = guest()
      test = self()

      wasm =
        guest(fn _wasm, n ->
          send(test, {:inner, Beamr.call(other, "count", [], timeout: 5_000)})
          n
        end)

      {result, _messages, taken} = alone(fn -> Beamr.call(wasm, "f", [1], timeout: 50) end)
      assert {:error, %CallError{reason: :timeout}} = result
      assert taken < 4_000
    end

    test "that was partly used up by waiting is so for calls of other instances as well" do
      other = guest()

      wasm =
        guest(fn
          _wasm, 0 ->
            Process.sleep(1_500)
            0

          _wasm, n ->
            {:error, %CallError{reason: :timeout}} =
              Beamr.call(other, "count", [], timeout: :infinity)

            n
        end)

      first = start_waiting(fn -> Beamr.call(wasm, "f", [0]) end)
      {result, _messages, taken} = alone(fn -> Beamr.call(wasm, "f", [1], timeout: 2_000) end)
      assert {:error, %CallError{reason: :timeout}} = result
      assert Task.await(first) == {:ok, [1]}
      # Of the 2 s, about 0.5 s are left for the other instance.
      assert taken < 3_000
    end

    test "ends with its call: what comes after has its own time" do
      other = guest()
      test = self()

      wasm =
        guest(fn wasm, n ->
          if n == 1, do: throw(:out)

          # Inside, the inner call's time is over with the inner call, which the import or its time
          # ends.
          {:error, _error} = Beamr.call(wasm, "f", [1], timeout: 1)
          send(test, Beamr.call(other, "spin", [10_000_000], timeout: :infinity))
          n
        end)

      assert Beamr.call(wasm, "f", [2], timeout: :infinity) == {:ok, [3]}
      assert_received {:ok, [_sum]}
      {:error, _error} = Beamr.call(wasm, "f", [1], timeout: 1)
      assert {:ok, [_sum]} = Beamr.call(other, "spin", [10_000_000], timeout: :infinity)
    end

    test "is the middle level's own at depth 3" do
      test = self()

      wasm =
        guest(fn
          wasm, 2 ->
            send(test, {:middle, Beamr.call(wasm, "f", [1], timeout: 20)})
            2

          wasm, 1 ->
            send(test, {:inner, Beamr.call(wasm, "count", [], timeout: :infinity)})
            1
        end)

      assert Beamr.call(wasm, "f", [2], timeout: :infinity) == {:ok, [3]}
      assert_received {:inner, {:error, %CallError{reason: :timeout, function: "count"}}}
      assert_received {:middle, {:error, %CallError{reason: :timeout, function: "f"}}}
      refute_received _
    end

    test "counts the waiting for a busy instance; who waited leaves the queue" do
      wasm = guest()
      loop = start_count(wasm)

      {result, messages, taken} = alone(fn -> Beamr.call(wasm, "ok", [], timeout: 30) end)
      assert {:error, %CallError{reason: :timeout, function: "ok"}} = result
      assert messages == []
      assert taken in 30..9_999

      next = start_waiting(fn -> Beamr.call(wasm, "ok", [], timeout: :infinity) end)
      Beamr.interrupt(wasm)
      assert Task.await(next) == {:ok, [7]}
      assert {:error, %CallError{reason: :interrupted}} = Task.await(loop)
    end

    test "goes on counting once the turn has come" do
      wasm = guest(holding())
      task = held(Task.async(fn -> Beamr.call(wasm, "f", [1]) end))
      waiting = start_waiting(fn -> Beamr.call(wasm, "count", [], timeout: 100) end)
      send(task.pid, :go_on)
      assert Task.await(task) == {:ok, [2]}
      assert {:error, %CallError{reason: :timeout, function: "count"}} = Task.await(waiting)
      assert_usable(wasm)
    end

    test "passes the turn on to those behind, in order, when those in front give up" do
      wasm = guest(holding())
      task = held(Task.async(fn -> Beamr.call(wasm, "f", [1]) end))
      gone = for _ <- 1..3, do: start_waiting(fn -> Beamr.call(wasm, "ok", [], timeout: 20) end)
      stays = start_waiting(fn -> Beamr.call(wasm, "ok", [], timeout: :infinity) end)

      for result <- Task.await_many(gone) do
        assert {:error, %CallError{reason: :timeout}} = result
      end

      send(task.pid, :go_on)
      assert Task.await(stays) == {:ok, [7]}
    end
  end

  describe "no message is left in the caller's mailbox" do
    test "when the turn comes at the very moment that the time is up" do
      wasm = guest()

      for n <- 1..300 do
        mode = Enum.at(@modes, rem(n, 3))
        timeout = rem(n, 4)

        # Both end at about the same time, so that the turn often comes too late or just in time.
        loop =
          Task.async(fn -> Beamr.call(wasm, "count", [], timeout: timeout, scheduler: mode) end)

        waiting =
          for _ <- 1..3 do
            Task.async(fn ->
              result = Beamr.call(wasm, "ok", [], timeout: timeout, scheduler: mode)
              {result, Process.info(self(), :messages)}
            end)
          end

        assert {:error, %CallError{reason: :timeout}} = Task.await(loop)

        for {result, messages} <- Task.await_many(waiting) do
          assert messages == {:messages, []}
          assert match?({:ok, [7]}, result) or match?({:error, %{reason: :timeout}}, result)
        end

        assert_usable(wasm)
      end
    end

    test "when the turn comes from a caller that is killed" do
      wasm = guest()

      # They wait over and over again, so that what comes late is seen too.
      waiters = for _ <- 1..8, do: Task.async(fn -> wait_again_and_again(wasm, 0) end)

      for _ <- 1..600 do
        opts = [scheduler: :dirty, timeout: :infinity]
        {pid, monitor} = spawn_monitor(fn -> Beamr.call(wasm, "count", [], opts) end)

        # Until the time of those who wait is about up. What is raced here has no event to wait for.
        Process.sleep(1)
        Process.exit(pid, :kill)
        assert_receive {:DOWN, ^monitor, :process, ^pid, :killed}, 10_000
      end

      for waiter <- waiters, do: send(waiter.pid, :stop)

      for {left, count} <- Task.await_many(waiters, 20_000) do
        assert left == []
        assert count > 0
      end

      assert_usable(wasm)
    end

    defp wait_again_and_again(wasm, count) do
      result = Beamr.call(wasm, "ok", [], timeout: 1)
      assert match?({:ok, [7]}, result) or match?({:error, %{reason: :timeout}}, result)

      case Process.info(self(), :messages) do
        {:messages, []} -> wait_again_and_again(wasm, count + 1)
        {:messages, messages} -> {messages -- [:stop], count}
      end
    end

    test "by an interrupt, a close, a trap, a failed import" do
      for {function, ended_by} <- [
            {"count", &Beamr.interrupt/1},
            {"count", &Beamr.close/1},
            {"trap", fn _wasm -> :ok end},
            {"f", fn _wasm -> :ok end}
          ] do
        wasm = guest(fn _wasm, _n -> throw(:out) end)
        args = if function == "f", do: [1], else: []

        task =
          Task.async(fn ->
            {:error, _error} = Beamr.call(wasm, function, args, timeout: :infinity)
            Process.info(self(), [:messages, :monitors])
          end)

        if function == "count", do: eventually(fn -> counter(wasm) > 0 end)
        ended_by.(wasm)
        assert Task.await(task) == [messages: [], monitors: []]
      end
    end

    test "where messages of its own are waiting, and those stay as they were" do
      wasm = guest(holding())
      task = held(Task.async(fn -> Beamr.call(wasm, "f", [1]) end))
      own = [{:beamr_turn, make_ref()}, :go_on, {:DOWN, make_ref()}]

      call = fn timeout ->
        for message <- own, do: send(self(), message)
        {Beamr.call(wasm, "ok", [], timeout: timeout), Process.info(self(), :messages)}
      end

      served = start_waiting(fn -> call.(:infinity) end)
      late = Task.async(fn -> call.(5) end)
      assert {{:error, %CallError{reason: :timeout}}, {:messages, ^own}} = Task.await(late)
      send(task.pid, :go_on)
      assert {{:ok, [7]}, {:messages, ^own}} = Task.await(served)
    end
  end

  describe "nothing else is left in the caller either:" do
    test "no monitor of it, whatever became of its calls" do
      wasm = guest()
      loop = start_count(wasm)
      owner = self()

      task =
        Task.async(fn ->
          # given up, served after a wait, ended after slices, ended at once
          {:error, %{reason: :timeout}} = Beamr.call(wasm, "ok", [], timeout: 5)
          Beamr.interrupt(wasm)
          {:ok, [7]} = Beamr.call(wasm, "ok", [], timeout: :infinity)
          {:ok, [_sum]} = Beamr.call(wasm, "spin", [20_000_000], timeout: :infinity)
          {:error, %{reason: :timeout}} = Beamr.call(wasm, "count", [], timeout: 5)
          {:error, %Trap{}} = Beamr.call(wasm, "trap", [])
          send(owner, :called)
          receive do: (:asked -> :ok)
        end)

      assert {:error, %CallError{reason: :interrupted}} = Task.await(loop)
      assert_receive :called, 10_000
      # Asked by another process, after the signals that end its own monitors. The task's owner
      # monitors it.
      info = Process.info(task.pid, [:monitored_by, :monitors, :messages])
      assert info == [monitored_by: [self()], monitors: [], messages: []]
      send(task.pid, :asked)
      Task.await(task)
    end
  end

  describe "interrupt/1" do
    for mode <- @modes do
      test "ends a loop of #{mode}" do
        wasm = guest()

        for _ <- 1..10 do
          task = start_count(wasm, scheduler: unquote(mode))
          assert Beamr.interrupt(wasm) == :ok
          assert {:error, %CallError{reason: :interrupted, function: "count"}} = Task.await(task)
          assert_usable(wasm)
        end
      end
    end

    test "ends a call in an import when that returns" do
      wasm = guest(holding())
      task = held(Task.async(fn -> Beamr.call(wasm, "f", [1]) end))
      Beamr.interrupt(wasm)
      assert Task.yield(task, 20) == nil
      send(task.pid, :go_on)
      assert {:error, %CallError{reason: :interrupted, function: "f"}} = Task.await(task)
      assert_usable(wasm)
    end

    test "of an idle instance does nothing, and does not touch the next call" do
      wasm = guest()
      for _ <- 1..3, do: assert(Beamr.interrupt(wasm) == :ok)
      assert Beamr.call(wasm, "spin", [5_000_000]) == {:ok, [sum(5_000_000)]}
    end

    test "does not reach past the call that it ended" do
      wasm = guest()
      task = start_count(wasm)
      for _ <- 1..100, do: Beamr.interrupt(wasm)
      assert {:error, %CallError{reason: :interrupted}} = Task.await(task)
      assert Beamr.call(wasm, "spin", [5_000_000]) == {:ok, [sum(5_000_000)]}
    end

    test "at any time ends a call or does nothing" do
      wasm = guest()

      for_random_cases(100, fn ->
        task = Task.async(fn -> Beamr.call(wasm, "spin", [:rand.uniform(300_000)]) end)
        for _ <- 1..:rand.uniform(30), do: Beamr.interrupt(wasm)
        result = Task.await(task)
        assert match?({:ok, [_]}, result) or match?({:error, %{reason: :interrupted}}, result)
        assert_usable(wasm)
      end)
    end

    test "of a closed instance does nothing" do
      wasm = guest()
      Beamr.close(wasm)
      assert Beamr.interrupt(wasm) == :ok
    end

    test "ends every level of a nest" do
      test = self()

      wasm =
        guest(fn
          wasm, 0 ->
            send(test, {:level, 0, Beamr.call(wasm, "count", [], timeout: :infinity)})
            0

          wasm, n ->
            send(test, {:level, n, Beamr.call(wasm, "f", [n - 1], timeout: :infinity)})
            n
        end)

      task = Task.async(fn -> Beamr.call(wasm, "f", [3], timeout: :infinity) end)
      eventually(fn -> counter(wasm) > 0 end)
      Beamr.interrupt(wasm)
      assert {:error, %CallError{reason: :interrupted, function: "f"}} = Task.await(task)

      for n <- 0..3 do
        assert_received {:level, ^n, {:error, %CallError{reason: :interrupted}}}
      end

      assert_usable(wasm)
    end

    test "by the import itself ends its call when it returns" do
      wasm =
        guest(fn wasm, n ->
          Beamr.interrupt(wasm)
          n
        end)

      assert {:error, %CallError{reason: :interrupted}} = Beamr.call(wasm, "f", [1])
      assert_usable(wasm)
    end

    test "hits the call in flight only, not those that wait" do
      wasm = guest()
      task = start_count(wasm)

      waiting =
        for n <- 1..5 do
          start_waiting(fn -> Beamr.call(wasm, "f", [n], timeout: :infinity) end)
        end

      Beamr.interrupt(wasm)
      assert {:error, %CallError{reason: :interrupted}} = Task.await(task)
      assert Task.await_many(waiting) == for(n <- 1..5, do: {:ok, [n + 1]})
    end

    test "ends a start function" do
      test = self()

      task =
        Task.async(fn ->
          Beamr.instantiate(
            """
            (module (import "env" "i" (func $i)) (memory (export "memory") 1)
              (func $start (call $i) (loop (br 0))) (start $start))
            """,
            imports: %{"env" => %{"i" => fn wasm -> send(test, {:wasm, wasm}) end}},
            timeout: :infinity
          )
        end)

      assert_receive {:wasm, wasm}, 10_000
      Beamr.interrupt(wasm)
      assert {:error, %CallError{reason: :interrupted, function: nil}} = Task.await(task)
    end
  end

  describe "when the calling process dies" do
    # What holds the instance, and is about to be killed.
    for where <- [:loop, :import, :nested_loop, :nested_import, :other_instance] do
      test "(#{where}), all who wait get in, in order" do
        wasm = guest(&die_in/2)
        order = :counters.new(1, [])
        task = Task.async(fn -> occupy(unquote(where), wasm) end)
        eventually(fn -> counter(wasm) > 0 end)

        waiting =
          for n <- 1..5 do
            start_waiting(fn ->
              # The import of code 100 + n answers how many have come before.
              Process.put(:order, order)
              {n, Beamr.call(wasm, "f", [100], timeout: :infinity)}
            end)
          end

        kill(task.pid)
        assert Task.await_many(waiting) == for(n <- 1..5, do: {n, {:ok, [n]}})
      end
    end

    defp occupy(:loop, wasm), do: Beamr.call(wasm, "count", [], timeout: :infinity)
    defp occupy(:import, wasm), do: Beamr.call(wasm, "f", [0], timeout: :infinity)
    defp occupy(:nested_loop, wasm), do: Beamr.call(wasm, "f", [1], timeout: :infinity)
    defp occupy(:nested_import, wasm), do: Beamr.call(wasm, "f", [2], timeout: :infinity)
    defp occupy(:other_instance, wasm), do: Beamr.call(wasm, "f", [3], timeout: :infinity)

    defp die_in(wasm, 0) do
      Beamr.IO.write!(wasm, 0, <<1::little-64>>)
      Process.sleep(:infinity)
    end

    defp die_in(wasm, 1), do: Beamr.call(wasm, "count", [], timeout: :infinity)
    defp die_in(wasm, 2), do: Beamr.call(wasm, "f", [0], timeout: :infinity)

    defp die_in(wasm, 3) do
      other = guest()
      Beamr.IO.write!(wasm, 0, <<1::little-64>>)
      Beamr.call(other, "count", [], timeout: :infinity)
    end

    defp die_in(_wasm, 100) do
      order = Process.get(:order)
      before = :counters.get(order, 1)
      :counters.add(order, 1, 1)
      before
    end

    test "as one of those who wait, the others get in, in order" do
      wasm = guest(&die_in/2)
      order = :counters.new(1, [])
      task = Task.async(fn -> Beamr.call(wasm, "f", [0], timeout: :infinity) end)
      eventually(fn -> counter(wasm) > 0 end)

      waiting =
        for n <- 1..9 do
          start_waiting(fn ->
            Process.put(:order, order)
            {n, Beamr.call(wasm, "f", [100], timeout: :infinity)}
          end)
        end

      for n <- [1, 4, 5, 9], do: waiting |> Enum.at(n - 1) |> Map.fetch!(:pid) |> kill()
      living = for n <- [2, 3, 6, 7, 8], do: Enum.at(waiting, n - 1)
      kill(task.pid)

      assert Task.await_many(living) ==
               for({n, place} <- Enum.zip([2, 3, 6, 7, 8], 1..5), do: {n, {:ok, [place]}})
    end

    test "as the one whose turn has just come, the next gets in" do
      wasm = guest(holding())

      for round <- 1..100 do
        task = held(Task.async(fn -> Beamr.call(wasm, "f", [1], timeout: :infinity) end))
        first = start_waiting(fn -> Beamr.call(wasm, "ok", [], timeout: :infinity) end)
        second = start_waiting(fn -> Beamr.call(wasm, "ok", [], timeout: :infinity) end)

        # A process that is suspended cannot take the turn it is given.
        if rem(round, 2) == 0, do: :erlang.suspend_process(first.pid)
        send(task.pid, :go_on)
        assert Task.await(task) == {:ok, [2]}
        kill(first.pid)
        assert Task.await(second) == {:ok, [7]}
      end
    end

    test "in a start function, its instance is closed for those who wait" do
      test = self()

      {pid, monitor} =
        spawn_monitor(fn ->
          Beamr.instantiate(
            """
            (module (import "env" "i" (func $i)) (memory (export "memory") 1)
              (func $start (call $i)) (start $start) (func (export "ok")))
            """,
            imports: %{
              "env" => %{
                "i" => fn wasm ->
                  send(test, {:wasm, wasm})
                  Process.sleep(:infinity)
                end
              }
            },
            timeout: :infinity
          )
        end)

      assert_receive {:wasm, wasm}, 10_000
      waiting = start_waiting(fn -> Beamr.call(wasm, "ok", [], timeout: :infinity) end)
      Process.exit(pid, :kill)
      assert_receive {:DOWN, ^monitor, :process, ^pid, :killed}, 10_000
      assert {:error, %CallError{reason: :closed}} = Task.await(waiting)
    end

    test "by an exit signal that is no kill, others get in" do
      wasm = guest()
      order = start_count(wasm)
      Process.unlink(order.pid)
      waiting = start_waiting(fn -> Beamr.call(wasm, "ok", [], timeout: :infinity) end)
      Process.exit(order.pid, :shutdown)
      assert Task.await(waiting) == {:ok, [7]}
    end

    test "by an exit of its own in an import, others get in" do
      wasm = guest(fn _wasm, _n -> exit(:boom) end)
      {pid, monitor} = spawn_monitor(fn -> Beamr.call!(wasm, "f", [1]) end)
      assert_receive {:DOWN, ^monitor, :process, ^pid, :boom}, 10_000
      assert_usable(wasm)
    end
  end

  describe "close/1 during a call" do
    for where <- [:loop, :import, :nested_loop, :nested_import] do
      test "(#{where}) ends it and all that wait with :closed" do
        test = self()

        wasm =
          guest(fn
            wasm, 2 ->
              send(test, {:inner, Beamr.call(wasm, "f", [0], timeout: :infinity)})
              0

            wasm, 1 ->
              send(test, {:inner, Beamr.call(wasm, "count", [], timeout: :infinity)})
              1

            wasm, 0 ->
              Beamr.IO.write!(wasm, 0, <<1::little-64>>)
              send(test, {:held, self()})
              receive do: (:go_on -> 0)
          end)

        task = Task.async(fn -> occupy(unquote(where), wasm) end)
        eventually(fn -> counter(wasm) > 0 end)

        waiting =
          for _ <- 1..4 do
            start_waiting(fn ->
              {Beamr.call(wasm, "ok", [], timeout: :infinity), Process.info(self(), :messages)}
            end)
          end

        assert Beamr.close(wasm) == :ok

        for result <- Task.await_many(waiting) do
          assert {{:error, %CallError{reason: :closed}}, {:messages, []}} = result
        end

        if unquote(where) in [:import, :nested_import], do: send(held(task).pid, :go_on)
        assert {:error, %CallError{reason: :closed}} = Task.await(task)

        if unquote(where) in [:nested_loop, :nested_import] do
          assert_received {:inner, {:error, %CallError{reason: :closed}}}
        end
      end
    end

    test "by its own import ends it when that returns" do
      wasm =
        guest(fn wasm, n ->
          :ok = Beamr.close(wasm)
          {:error, %CallError{reason: :closed}} = Beamr.call(wasm, "ok", [])
          n
        end)

      assert {:error, %CallError{reason: :closed}} = Beamr.call(wasm, "f", [1])
    end

    test "by an import of its start function makes no instance" do
      assert {:error, %CallError{reason: :closed}} =
               Beamr.instantiate(
                 ~S|(module (import "env" "i" (func $i)) (func $s (call $i)) (start $s))|,
                 imports: %{"env" => %{"i" => &Beamr.close/1}}
               )
    end

    test "and an import that raises then is an error all the same" do
      wasm =
        guest(fn wasm, _n ->
          Beamr.close(wasm)
          raise "no"
        end)

      assert {:error, error} = Beamr.call(wasm, "f", [1])
      assert error.__struct__ in [CallError, ImportError]
    end
  end

  describe "nested calls" do
    test "have their own arguments and results at each level" do
      # Each level answers what the guest adds to the level below's answer.
      wasm =
        guest(fn
          _wasm, 0 ->
            0

          wasm, n ->
            [sum] = Beamr.call!(wasm, "add", [n, 1000 * n])
            [below] = Beamr.call!(wasm, "f", [n - 1])
            # Level n of the guest is suspended: what it computes is still its own.
            ^sum = n * 1001
            below + 1
        end)

      assert Beamr.call(wasm, "f", [50]) == {:ok, [101]}
    end

    test "have their own errors at each level" do
      test = self()

      wasm =
        guest(fn
          wasm, 3 ->
            send(test, {3, Beamr.call(wasm, "nope", [])})
            send(test, {3, Beamr.call(wasm, "f", [2])})
            3

          wasm, 2 ->
            send(test, {2, Beamr.call(wasm, "add", [1])})
            send(test, {2, Beamr.call(wasm, "f", [1])})
            2

          wasm, 1 ->
            send(test, {1, Beamr.call(wasm, "div", [1, 0])})
            throw(:up)
        end)

      assert Beamr.call(wasm, "f", [3]) == {:ok, [4]}
      assert_received {3, {:error, %CallError{reason: :unknown_function}}}
      assert_received {2, {:error, %CallError{reason: :arity, wanted: 2, given: 1}}}
      assert_received {1, {:error, %Trap{reason: :integer_divide_by_zero, function: "div"}}}
      assert_received {2, {:error, %ImportError{kind: :throw, reason: :up}}}
      assert_received {3, {:ok, [3]}}
      refute_received _
    end

    test "reach depth 300 where max_depth allows it" do
      down = fn
        _wasm, 0 -> 0
        wasm, n -> hd(Beamr.call!(wasm, "f", [n - 1], timeout: :infinity))
      end

      wasm = guest(down, max_depth: 300)
      assert Beamr.call(wasm, "f", [299], timeout: :infinity) == {:ok, [300]}

      assert {:error, %ImportError{reason: %CallError{reason: :depth, wanted: 300}}} =
               Beamr.call(wasm, "f", [300], timeout: :infinity)
    end

    test "past max_depth are refused, and the levels there are stay usable" do
      down = fn wasm, n ->
        case Beamr.call(wasm, "f", [n + 1]) do
          {:ok, [deepest]} ->
            deepest - 1

          {:error, %CallError{reason: :depth, wanted: 5, function: "f"} = error} ->
            assert Exception.message(error) =~ "max_depth (5)"
            assert Beamr.IO.read!(wasm, 0, 1) == <<0>>
            n
        end
      end

      assert Beamr.call(guest(down, max_depth: 5), "f", [1]) == {:ok, [6]}
    end

    test "of max_depth 1 are refused" do
      test = self()

      wasm =
        guest(
          fn wasm, n ->
            send(test, Beamr.call(wasm, "ok", []))
            n
          end,
          max_depth: 1
        )

      assert Beamr.call(wasm, "f", [1]) == {:ok, [2]}
      assert_received {:error, %CallError{reason: :depth, wanted: 1}}
    end

    test "max_depth is a positive integer" do
      for depth <- [0, -1, 1.0, :infinity, nil] do
        assert_raise ArgumentError, ~r/:max_depth must be/, fn ->
          Beamr.instantiate("(module)", max_depth: depth)
        end
      end
    end

    test "go to and fro between two instances" do
      {:ok, agent} = Agent.start_link(fn -> nil end)

      # a -> b -> a -> b ..., each adding 1 of its own.
      a =
        guest(fn
          _wasm, 0 -> 0
          _wasm, n -> hd(Beamr.call!(Agent.get(agent, & &1), "f", [n - 1]))
        end)

      b =
        guest(fn
          _wasm, 0 -> 0
          _wasm, n -> hd(Beamr.call!(a, "f", [n - 1]))
        end)

      Agent.update(agent, fn _ -> b end)
      assert Beamr.call(a, "f", [40]) == {:ok, [41]}

      # A trap inside is an error of its own level, wherever that is.
      c = guest(fn _wasm, n -> n + elem(Beamr.call(a, "trap", []), 1).function end)
      assert {:error, %ImportError{}} = Beamr.call(c, "f", [1])
      assert_usable(a)
      assert_usable(b)
      assert_usable(c)
    end

    test "between two instances are killed together" do
      b = guest()
      a = guest(fn _wasm, _n -> Beamr.call(b, "count", [], timeout: :infinity) end)
      task = Task.async(fn -> Beamr.call(a, "f", [1], timeout: :infinity) end)
      eventually(fn -> counter(b) > 0 end)
      waiting = for wasm <- [a, b], do: start_waiting(fn -> Beamr.call(wasm, "ok", []) end)
      kill(task.pid)
      assert Task.await_many(waiting) == [{:ok, [7]}, {:ok, [7]}]
    end

    test "malloc and write_string work at every level" do
      wasm =
        guest(fn
          wasm, 0 ->
            Beamr.IO.write_string!(wasm, "deep")

          wasm, n ->
            Beamr.IO.malloc!(wasm, 16)
            [pointer] = Beamr.call!(wasm, "f", [n - 1])
            Beamr.IO.free!(wasm, pointer)
            pointer - 1
        end)

      {:ok, [pointer]} = Beamr.call(wasm, "f", [5])
      assert pointer - 1 == 1024 + 5 * 16
      assert Beamr.IO.read_string(wasm, pointer - 1) == {:ok, "deep"}
    end

    test "the import in the middle catches what the one inside fails with" do
      wasm =
        guest(fn
          wasm, 2 ->
            try do
              Beamr.call!(wasm, "f", [1])
            catch
              :throw, {:deep, n} -> n
            end

          wasm, 1 ->
            hd(Beamr.call!(wasm, "f", [0]))

          _wasm, 0 ->
            throw({:deep, 41})
        end)

      assert Beamr.call(wasm, "f", [2]) == {:ok, [42]}
    end

    test "a trap at one level is an error for that level only" do
      wasm =
        guest(fn
          wasm, 0 ->
            {:error, %Trap{reason: :unreachable, function: "trap"}} = Beamr.call(wasm, "trap", [])
            0

          wasm, n ->
            hd(Beamr.call!(wasm, "f", [n - 1]))
        end)

      assert Beamr.call(wasm, "f", [10]) == {:ok, [11]}
    end

    for {kind, reason} <- [
          error: Macro.escape(%RuntimeError{message: "deep"}),
          throw: {:deep, 1},
          exit: :deep
        ] do
      test "#{kind} at depth 3 reaches the outer caller as it was" do
        wasm =
          guest(fn
            _wasm, 0 -> fail(unquote(kind), unquote(reason))
            wasm, n -> hd(Beamr.call!(wasm, "f", [n - 1]))
          end)

        assert {:error, %ImportError{module: "env", name: "i"} = error} =
                 Beamr.call(wasm, "f", [2])

        assert {error.kind, error.reason} == {unquote(kind), unquote(reason)}
        assert [{__MODULE__, :fail, 2, _location} | _] = error.stacktrace

        caught =
          try do
            Beamr.call!(wasm, "f", [2])
          catch
            kind, reason -> {kind, reason, __STACKTRACE__}
          end

        assert {unquote(kind), unquote(reason), [{__MODULE__, :fail, 2, _location} | _]} = caught
        assert_usable(wasm)
      end
    end

    defp fail(kind, reason), do: :erlang.raise(kind, reason, [{__MODULE__, :fail, 2, []}])

    test "of another instance pass on what an import raised, with its stacktrace" do
      inner = guest(fn _wasm, _n -> fail(:throw, :far) end)
      outer = guest(fn _wasm, n -> hd(Beamr.call!(inner, "f", [n])) end)

      assert {:error, %ImportError{kind: :throw, reason: :far, stacktrace: stacktrace}} =
               Beamr.call(outer, "f", [1])

      assert [{__MODULE__, :fail, 2, _location} | _] = stacktrace
      for wasm <- [inner, outer], do: assert_usable(wasm)
    end

    test "are made while others wait, and before them" do
      test = self()

      wasm =
        guest(fn
          wasm, 1 ->
            send(test, {:held, self()})
            receive do: (:go_on -> hd(Beamr.call!(wasm, "add", [20, 21])))

          _wasm, n ->
            n
        end)

      task = held(Task.async(fn -> Beamr.call(wasm, "f", [1]) end))
      waiting = start_waiting(fn -> Beamr.call(wasm, "f", [2]) end)
      send(task.pid, :go_on)
      assert Task.await(task) == {:ok, [42]}
      assert Task.await(waiting) == {:ok, [3]}
    end
  end

  describe "what goes wrong elsewhere:" do
    test "as many endless guests as schedulers end in their time, and others go on" do
      module = Beamr.compile!(endless())
      started = System.monotonic_time(:millisecond)

      tasks =
        for _ <- 1..System.schedulers_online() do
          wasm = Beamr.instantiate!(module)

          Task.async(fn ->
            result = Beamr.call(wasm, "count", [], timeout: 500)
            {result, System.monotonic_time(:millisecond) - started}
          end)
        end

      neighbour = Beamr.instantiate!(module)
      calls = calls_until(neighbour, started + 300, 0)

      for {result, taken} <- Task.await_many(tasks) do
        assert {:error, %CallError{reason: :timeout}} = result
        assert taken in 500..5_000
      end

      assert calls > 10
    end

    defp calls_until(wasm, deadline, count) do
      assert Beamr.call(wasm, "f", []) == {:ok, [7]}

      if System.monotonic_time(:millisecond) < deadline,
        do: calls_until(wasm, deadline, count + 1),
        else: count
    end

    test "a nest of depth 50 answers" do
      down = fn
        _wasm, 0 -> 0
        wasm, n -> hd(Beamr.call!(wasm, "f", [n - 1]))
      end

      assert Beamr.call(guest(down), "f", [49]) == {:ok, [50]}
    end
  end
end
