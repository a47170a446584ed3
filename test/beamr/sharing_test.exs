defmodule Beamr.SharingTest do
  # One instance, many processes: turns, order, memory meanwhile, and what stays when they die.
  use Beamr.Case, async: false

  alias Beamr.{CallError, ExportError, Instance}

  # `add` answers its argument plus 1, by way of the import; `log` appends its argument, a byte,
  # to what is at 8. `count` is endless and counts at 0, until the byte at 4096 is set: then it
  # calls the import.
  @guest """
  (module
    (import "env" "i" (func $i (param i32) (result i32)))
    (memory (export "memory") 1)
    (global $next (export "next") (mut i32) (i32.const 8))
    (func (export "add") (param i32) (result i32)
      (i32.add (call $i (local.get 0)) (i32.const 1)))
    (func (export "log") (param i32)
      (i32.store8 (global.get $next) (local.get 0))
      (global.set $next (i32.add (global.get $next) (i32.const 1))))
    (func (export "count") (result i32)
      (loop $again
        (i64.store (i32.const 0) (i64.add (i64.load (i32.const 0)) (i64.const 1)))
        (br_if $again (i32.eqz (i32.load8_u (i32.const 4096)))))
      (call $i (i32.const 1)))
    (func (export "fill") (param i32)
      (loop $again
        (memory.fill (i32.const 8192) (local.get 0) (i32.const 4096))
        (local.set 0 (i32.add (local.get 0) (i32.const 1)))
        (br $again)))
    (func (export "ok") (result i32) (i32.const 7)))
  """

  defp guest(import \\ fn _wasm, n -> n end) do
    Beamr.instantiate!(@guest, imports: %{"env" => %{"i" => import}})
  end

  defp start_count(wasm) do
    task = Task.async(fn -> Beamr.call(wasm, "count", [], timeout: :infinity) end)
    eventually(fn -> counter(wasm) > 0 end)
    task
  end

  defp start_waiting(function) do
    task = Task.async(function)
    await_waiting(task.pid)
    task
  end

  describe "1,000 processes on one instance" do
    test "each get their own right answer" do
      wasm = guest()

      tasks =
        for n <- 1..1_000 do
          Task.async(fn ->
            scheduler = Enum.at([:auto, :normal, :dirty], rem(n, 3))
            Beamr.call(wasm, "add", [n], timeout: 60_000, scheduler: scheduler)
          end)
        end

      assert Task.await_many(tasks, 60_000) == for(n <- 1..1_000, do: {:ok, [n + 1]})
    end

    test "are served in the order of their arrival" do
      wasm = guest()
      loop = start_count(wasm)

      tasks =
        for n <- 1..1_000 do
          start_waiting(fn -> Beamr.call(wasm, "log", [rem(n, 256)], timeout: :infinity) end)
        end

      Beamr.interrupt(wasm)
      assert {:error, %CallError{reason: :interrupted}} = Task.await(loop)
      for result <- Task.await_many(tasks, 60_000), do: assert(result == {:ok, []})

      assert Beamr.IO.read(wasm, 8, 1_000) ==
               {:ok, for(n <- 1..1_000, into: "", do: <<rem(n, 256)>>)}
    end

    test "hold no scheduler while they wait" do
      wasm = guest()
      start_count(wasm)

      for _ <- 1..1_000 do
        start_waiting(fn -> Beamr.call(wasm, "ok", [], timeout: :infinity) end)
      end

      # Not on a dirty scheduler, not on a normal one.
      other = guest()
      assert Beamr.call(other, "ok", [], scheduler: :dirty) == {:ok, [7]}
      assert Task.await(Task.async(fn -> :answer end)) == :answer

      Beamr.close(wasm)
    end

    test "may die in any number" do
      wasm = guest()
      loop = start_count(wasm)

      pids =
        for n <- 1..1_000 do
          spawn(fn -> Beamr.call(wasm, "log", [rem(n, 256)], timeout: :infinity) end)
        end

      for pid <- pids, do: await_waiting(pid)
      last = start_waiting(fn -> Beamr.call(wasm, "ok", [], timeout: :infinity) end)
      for pid <- pids, do: kill(pid)
      Beamr.interrupt(wasm)
      assert {:error, %CallError{reason: :interrupted}} = Task.await(loop)
      assert Task.await(last) == {:ok, [7]}
      assert Instance.get_global(wasm, "next") == {:ok, 8}
    end

    test "that call many times over are never given another's answer" do
      wasm = guest()

      for_random_cases(5, fn ->
        tasks =
          for _ <- 1..50 do
            seed = :rand.uniform(2 ** 32)

            Task.async(fn ->
              :rand.seed(:exsss, seed)

              for _ <- 1..50 do
                n = random_integer(0, 2 ** 30)
                assert Beamr.call(wasm, "add", [n], timeout: 60_000) == {:ok, [n + 1]}
              end
            end)
          end

        Task.await_many(tasks, 60_000)
      end)
    end
  end

  describe "while a guest loops" do
    test "any number of processes read and write its memory" do
      wasm = guest()
      loop = start_count(wasm)

      tasks =
        for n <- 1..100 do
          Task.async(fn ->
            for round <- 1..10 do
              :ok = Beamr.IO.write(wasm, 10_000 + 2 * n, <<n, round>>)
              assert Beamr.IO.read(wasm, 10_000 + 2 * n, 2) == {:ok, <<n, round>>}
            end
          end)
        end

      Task.await_many(tasks, 60_000)
      assert Task.yield(loop, 0) == nil
    end

    test "a read sees no half of what the guest does between two safe points" do
      wasm = guest()
      task = Task.async(fn -> Beamr.call(wasm, "fill", [1], timeout: :infinity) end)
      eventually(fn -> Beamr.IO.read!(wasm, 8192, 1) != <<0>> end)

      for _ <- 1..200 do
        assert [_one] = wasm |> Beamr.IO.read!(8192, 4096) |> :binary.bin_to_list() |> Enum.uniq()
      end

      Beamr.interrupt(wasm)
      assert {:error, %CallError{reason: :interrupted}} = Task.await(task)
    end

    test "a write tells the guest to go on" do
      wasm = guest()
      loop = start_count(wasm)
      :ok = Beamr.IO.write(wasm, 4096, <<1>>)
      assert Task.await(loop) == {:ok, [1]}
    end

    test "a string that another process writes waits for the turn of its malloc" do
      wasm =
        Beamr.instantiate!("""
        (module
          #{bump_malloc()}
          (memory (export "memory") 1)
          (func (export "count") (loop $again
            (i64.store (i32.const 0) (i64.add (i64.load (i32.const 0)) (i64.const 1)))
            (br $again))))
        """)

      loop = start_count(wasm)
      writing = start_waiting(fn -> Beamr.IO.write_string(wasm, "text") end)
      Beamr.interrupt(wasm)
      assert {:error, %CallError{reason: :interrupted}} = Task.await(loop)
      assert {:ok, pointer} = Task.await(writing)
      assert Beamr.IO.read_string(wasm, pointer) == {:ok, "text"}
    end
  end

  describe "what goes wrong elsewhere:" do
    test "a second process asks for memory and globals during a call that then calls an import" do
      test = self()

      # The guest's import waits for what the other processes have got to know.
      wasm =
        guest(fn _wasm, n ->
          send(test, :in_import)
          receive do: (:known -> n)
        end)

      loop = start_count(wasm)
      memory = Task.async(fn -> for _ <- 1..100, do: Beamr.IO.read!(wasm, 0, 8) end)
      assert length(Task.await(memory)) == 100
      :ok = Beamr.IO.write(wasm, 4096, <<1>>)
      assert_receive :in_import, 10_000

      asked =
        Task.async(fn -> {Beamr.IO.read(wasm, 4096, 1), Instance.get_global(wasm, "next")} end)

      assert Task.await(asked) == {{:ok, <<1>>}, {:ok, 8}}
      send(loop.pid, :known)
      assert Task.await(loop) == {:ok, [1]}
    end

    test "a second process that has waited for a global since before the import gets it in it" do
      test = self()

      wasm =
        guest(fn _wasm, n ->
          send(test, :in_import)
          receive do: (:known -> n)
        end)

      loop = start_count(wasm)
      asking = start_waiting(fn -> Instance.get_global(wasm, "next") end)
      :ok = Beamr.IO.write(wasm, 4096, <<1>>)
      assert_receive :in_import, 10_000

      # The import answers when the global is known: to wait for each other would be a deadlock.
      known = Task.await(asking, 20_000)
      send(loop.pid, :known)
      assert Task.await(loop) == {:ok, [1]}
      assert known == {:ok, 8}
    end

    test "a call from the import's helper process waits, and ends by its own time" do
      test = self()

      wasm =
        guest(fn wasm, n ->
          helper = Task.async(fn -> Beamr.call(wasm, "ok", [], timeout: 20) end)
          send(test, {:helper, Task.await(helper)})
          n
        end)

      assert Beamr.call(wasm, "add", [1]) == {:ok, [2]}
      assert_received {:helper, {:error, %CallError{reason: :timeout}}}
      assert Beamr.call(wasm, "ok", []) == {:ok, [7]}
    end

    test "two processes in two instances that call each other's get out by their time" do
      test = self()

      # Each is in an import of the one, and calls the other.
      cross = fn other ->
        fn _wasm, n ->
          send(test, {:in, self()})
          receive do: (:go_on -> :ok)
          send(test, {:crossed, Beamr.call(other.(), "ok", [], timeout: 50)})
          n
        end
      end

      {:ok, agent} = Agent.start_link(fn -> nil end)
      a = guest(cross.(fn -> Agent.get(agent, & &1) end))
      b = guest(cross.(fn -> a end))
      Agent.update(agent, fn _ -> b end)

      tasks = for wasm <- [a, b], do: Task.async(fn -> Beamr.call(wasm, "add", [1]) end)

      for task <- tasks do
        pid = task.pid
        assert_receive {:in, ^pid}, 10_000
      end

      for task <- tasks, do: send(task.pid, :go_on)
      assert Task.await_many(tasks) == [{:ok, [2]}, {:ok, [2]}]
      assert_received {:crossed, {:error, %CallError{reason: :timeout}}}
      for wasm <- [a, b], do: assert(Beamr.call(wasm, "ok", []) == {:ok, [7]})
    end

    test "a caller killed mid-call frees the guest, memory and all" do
      wasm = guest()
      loop = start_count(wasm)
      kill(loop.pid)
      count = counter(wasm)
      assert Beamr.call(wasm, "ok", []) == {:ok, [7]}
      # It really has ended.
      assert counter(wasm) == count
    end

    test "40 kills inside an import with 16 MiB guests leave resident memory where it was" do
      # Written to, so that all of it is resident.
      module =
        Beamr.compile!("""
        (module
          (import "env" "i" (func $i))
          (memory (export "memory") 256)
          (func (export "f")
            (memory.fill (i32.const 0) (i32.const 1) (i32.const 16777216))
            (call $i)))
        """)

      kills(module, 3)
      before = resident()
      kills(module, 40)
      # Freed on threads of their own.
      assert eventually_below(before + 200 * 1024 * 1024, 500)
    end

    defp kills(module, count) do
      test = self()

      for _ <- 1..count do
        pid =
          spawn(fn ->
            hold = fn _wasm ->
              send(test, {:held, self()})
              Process.sleep(:infinity)
            end

            module
            |> Beamr.instantiate!(imports: %{"env" => %{"i" => hold}})
            |> Beamr.call("f", [], timeout: :infinity)
          end)

        assert_receive {:held, ^pid}, 10_000
        kill(pid)
      end
    end

    defp eventually_below(limit, tries) do
      for pid <- Process.list(), do: :erlang.garbage_collect(pid)

      cond do
        resident() < limit ->
          true

        tries == 0 ->
          false

        true ->
          Process.sleep(10)
          eventually_below(limit, tries - 1)
      end
    end

    defp resident do
      [_size, pages | _] = "/proc/self/statm" |> File.read!() |> String.split()
      String.to_integer(pages) * 4096
    end
  end

  describe "an instance that is closed" do
    test "tells all who waited for a call or an export, and all who come later" do
      wasm = guest()
      loop = start_count(wasm)

      calls =
        for _ <- 1..10 do
          start_waiting(fn -> Beamr.call(wasm, "ok", [], timeout: :infinity) end)
        end

      exports = for _ <- 1..10, do: start_waiting(fn -> Instance.get_global(wasm, "next") end)
      Beamr.close(wasm)

      for result <- Task.await_many([loop | calls]) do
        assert {:error, %CallError{reason: :closed}} = result
      end

      for result <- Task.await_many(exports) do
        assert {:error, %ExportError{reason: :closed}} = result
      end

      assert {:error, %CallError{reason: :closed}} = Beamr.call(wasm, "ok", [])
      assert {:error, %ExportError{reason: :closed}} = Instance.get_global(wasm, "next")
    end

    test "by many at once is closed" do
      for _ <- 1..20 do
        wasm = guest()
        loop = start_count(wasm)
        closing = for _ <- 1..5, do: Task.async(fn -> Beamr.close(wasm) end)
        assert Enum.uniq(Task.await_many(closing)) == [:ok]
        assert {:error, %CallError{reason: :closed}} = Task.await(loop)
      end
    end
  end
end
