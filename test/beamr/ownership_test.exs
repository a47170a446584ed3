defmodule Beamr.OwnershipTest do
  # What the host allocates in a guest, who frees it, and what is still held.
  use Beamr.Case, async: true

  alias Beamr.{CallError, MemoryError, Trap}

  # Its `free` gives the room back to the next `malloc` of as many bytes or fewer, last freed
  # first if it was the last; it traps for 13, and counts its calls at 0.
  @guest """
  (module
    (memory (export "memory") 1)
    (global $top (mut i32) (i32.const 1024))
    (global $free (mut i32) (i32.const 0))
    (func (export "malloc") (param $size i32) (result i32)
      (local $pointer i32)
      (if (i32.eq (local.get $size) (i32.const 666)) (then (return (i32.const 0))))
      (if (i32.eq (local.get $size) (i32.const 777)) (then (return (i32.const 65530))))
      (if (global.get $free) (then
        (local.set $pointer (global.get $free))
        (global.set $free (i32.const 0))
        (return (local.get $pointer))))
      (local.set $pointer (global.get $top))
      (global.set $top (i32.add (global.get $top) (local.get $size)))
      (local.get $pointer))
    (func $free (export "free") (param $pointer i32)
      (if (i32.eq (local.get $pointer) (i32.const 13)) (then (unreachable)))
      (if (i32.load (i32.const 4)) (then (unreachable)))
      (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
      (global.set $free (local.get $pointer)))
    (func (export "free_itself") (param $pointer i32) (call $free (local.get $pointer))))
  """

  defp guest, do: Beamr.instantiate!(@guest)
  defp freed(wasm), do: Beamr.IO.read_u32!(wasm, 0)
  defp break_free(wasm), do: :ok = Beamr.IO.write_u32(wasm, 4, 1)
  defp mend_free(wasm), do: :ok = Beamr.IO.write_u32(wasm, 4, 0)

  describe "held/1" do
    test "lists what malloc/2 and write_string/2 allocated and nobody freed, by pointer" do
      wasm = guest()
      me = self()
      assert Beamr.IO.held(wasm) == {:ok, []}
      assert Beamr.IO.malloc(wasm, 16) == {:ok, 1024}
      assert Beamr.IO.write_string(wasm, "four") == {:ok, 1040}
      assert {:ok, 1045} = Task.await(Task.async(fn -> Beamr.IO.malloc(wasm, 3) end))
      assert {:ok, [{1024, 16, ^me}, {1040, 5, ^me}, {1045, 3, other}]} = Beamr.IO.held(wasm)
      assert other != me
      assert Beamr.IO.held_count(wasm) == {:ok, 3}
      assert Beamr.IO.free(wasm, 1040) == :ok
      assert [{1024, 16, ^me}, {1045, 3, ^other}] = Beamr.IO.held!(wasm)
      assert Beamr.IO.held_count!(wasm) == 2
    end

    test "lists nothing that was allocated in vain" do
      wasm = guest()
      assert {:error, %MemoryError{reason: :malloc_failed}} = Beamr.IO.malloc(wasm, 666)
      long = :binary.copy("x", 776)

      assert {:error, %MemoryError{reason: :out_of_bounds}} = Beamr.IO.write_string(wasm, long)

      assert {:error, %MemoryError{reason: :out_of_bounds}} =
               Beamr.IO.with_bytes(wasm, [long, "x"], fn _pointer, _length -> flunk("lent") end)

      assert {:error, %CallError{}} = Beamr.IO.malloc(Beamr.instantiate!("(module)"), 1)
      assert Beamr.IO.held(wasm) == {:ok, []}
    end

    test "knows of calls of malloc and free under their names as little as of any other" do
      wasm = guest()
      {:ok, [1024]} = Beamr.call(wasm, "malloc", [8])
      assert Beamr.IO.held(wasm) == {:ok, []}
      assert Beamr.IO.free(wasm, 1024) == :ok
      assert Beamr.IO.free(wasm, 2 ** 32 - 1) == :ok
      assert {:error, %CallError{reason: :argument}} = Beamr.IO.free(wasm, 2 ** 64)
      assert Beamr.IO.held(wasm) == {:ok, []}
    end

    test "lists on what free/2 did not free" do
      wasm = guest()
      me = self()
      {:ok, pointer} = Beamr.IO.malloc(wasm, 8)
      break_free(wasm)
      assert {:error, %Trap{}} = Beamr.IO.free(wasm, pointer)
      assert Beamr.IO.held(wasm) == {:ok, [{pointer, 8, me}]}
      mend_free(wasm)
      assert Beamr.IO.free(wasm, pointer) == :ok
      assert Beamr.IO.held(wasm) == {:ok, []}
    end

    test "lists what the guest freed itself until its room is allocated again" do
      wasm = guest()
      me = self()
      {:ok, pointer} = Beamr.IO.malloc(wasm, 16)
      {:ok, []} = Beamr.call(wasm, "free_itself", [pointer])
      assert Beamr.IO.held(wasm) == {:ok, [{pointer, 16, me}]}
      assert Beamr.IO.malloc(wasm, 4) == {:ok, pointer}
      assert Beamr.IO.held(wasm) == {:ok, [{pointer, 4, me}]}
    end

    test "never lists allocations that overlap, so that it cannot grow for ever" do
      for_random_cases(50, fn ->
        wasm = guest()
        ref = wasm.ref

        model =
          Enum.reduce(1..60, %{}, fn _, model ->
            pointer = random_integer(1, 40)
            size = random_integer(0, 10)
            range = pointer..(pointer + max(size, 1) - 1)

            if :rand.uniform(4) == 1 do
              forgotten = Beamr.Native.held_forget(ref, pointer)
              assert forgotten == with({size, _range} <- model[pointer], do: {size, self()})
              Map.delete(model, pointer)
            else
              :ok = Beamr.Native.held_note(ref, pointer, size, self())

              model
              |> Map.reject(fn {_pointer, {_size, other}} -> not Range.disjoint?(range, other) end)
              |> Map.put(pointer, {size, range})
            end
          end)

        expected = for {pointer, {size, _range}} <- Enum.sort(model), do: {pointer, size, self()}
        assert Beamr.IO.held(wasm) == {:ok, expected}
      end)
    end

    test "lists many" do
      wasm = guest()
      for n <- 1..20_000, do: Beamr.Native.held_note(wasm.ref, n * 8, 8, self())
      assert {:ok, held} = Beamr.IO.held(wasm)
      assert length(held) == 20_000
      assert Beamr.IO.held_count(wasm) == {:ok, 20_000}
    end

    test "is gone with the instance" do
      wasm = guest()
      {:ok, _pointer} = Beamr.IO.malloc(wasm, 8)
      :ok = Beamr.close(wasm)
      assert {:error, %MemoryError{reason: :closed}} = Beamr.IO.held(wasm)
      assert {:error, %MemoryError{reason: :closed}} = Beamr.IO.held_count(wasm)
      assert Beamr.Native.held_note(wasm.ref, 8, 8, self()) == :ok
      assert Beamr.Native.held_forget(wasm.ref, 8) == nil
      assert_raise MemoryError, fn -> Beamr.IO.held!(wasm) end
      assert_raise MemoryError, fn -> Beamr.IO.held_count!(wasm) end
    end

    test "refuses what is no guest" do
      assert_raise FunctionClauseError, fn -> Beamr.IO.held(untyped("wasm")) end
      assert_raise FunctionClauseError, fn -> Beamr.IO.held_count(untyped(nil)) end
    end

    test "is right when many processes allocate and free at once" do
      wasm = guest()

      # A `malloc` that only moves on: no two processes ever hold the same.
      {:ok, [_pointer]} = Beamr.call(wasm, "malloc", [1])

      1..8
      |> Enum.map(fn _ ->
        Task.async(fn ->
          for _ <- 1..50 do
            {:ok, pointer} = Beamr.IO.malloc(wasm, 8)
            true = Enum.any?(Beamr.IO.held!(wasm), &match?({^pointer, 8, _pid}, &1))
            :ok = Beamr.IO.free(wasm, pointer)
          end
        end)
      end)
      |> Task.await_many(60_000)

      assert Beamr.IO.held(wasm) == {:ok, []}
    end
  end

  describe "with_string/3, with_bytes/3 and with_alloc/3" do
    test "lend what is written, and free it" do
      wasm = guest()
      read = &Beamr.IO.read_string!(wasm, &1)
      assert Beamr.IO.with_string(wasm, ["he", "llo"], read) == {:ok, "hello"}
      assert freed(wasm) == 1
      read = &Beamr.IO.read!(wasm, &1, &2)
      assert Beamr.IO.with_bytes(wasm, <<1, 0, 2>>, read) == {:ok, <<1, 0, 2>>}
      assert freed(wasm) == 2
      held = fn pointer -> {pointer, Beamr.IO.held!(wasm)} end
      me = self()
      assert {:ok, {pointer, [{pointer, 16, ^me}]}} = Beamr.IO.with_alloc(wasm, 16, held)
      assert freed(wasm) == 3
      assert Beamr.IO.held(wasm) == {:ok, []}
    end

    test "of nothing lend a pointer too" do
      wasm = guest()
      assert {:ok, {pointer, 0}} = Beamr.IO.with_bytes(wasm, "", &{&1, &2})
      assert pointer > 0
      assert Beamr.IO.with_string(wasm, "", &Beamr.IO.read_string!(wasm, &1)) == {:ok, ""}
    end

    test "answer whatever the function returns" do
      wasm = guest()

      for value <- [nil, :ok, {:error, :mine}, {:ok, 1}] do
        assert Beamr.IO.with_string(wasm, "x", fn _ -> value end) == {:ok, value}
        assert Beamr.IO.with_bytes(wasm, "x", fn _, _ -> value end) == {:ok, value}
        assert Beamr.IO.with_alloc(wasm, 1, fn _ -> value end) == {:ok, value}
        assert Beamr.IO.with_alloc!(wasm, 1, [], fn _ -> value end) == value
      end
    end

    test "free when the function raises, throws or exits, which goes on as it was" do
      wasm = guest()
      fail = fn kind -> :erlang.raise(kind, :mine, [{:m, :f, 0, []}]) end

      for kind <- [:error, :throw, :exit] do
        for lend <- [
              fn -> Beamr.IO.with_string(wasm, "x", fn _ -> fail.(kind) end) end,
              fn -> Beamr.IO.with_bytes(wasm, "x", fn _, _ -> fail.(kind) end) end,
              fn -> Beamr.IO.with_alloc(wasm, 1, fn _ -> fail.(kind) end) end
            ] do
          assert {^kind, :mine, [{:m, :f, 0, []}]} = caught(lend)
        end
      end

      assert freed(wasm) == 9
      assert Beamr.IO.held(wasm) == {:ok, []}
    end

    defp caught(function) do
      function.()
    catch
      kind, reason -> {kind, reason, Enum.take(__STACKTRACE__, 1)}
    end

    test "the function's own failure is told before that of free" do
      wasm = guest()

      assert_raise RuntimeError, "mine", fn ->
        Beamr.IO.with_string(wasm, "x", fn _pointer ->
          break_free(wasm)
          raise "mine"
        end)
      end

      assert Beamr.IO.held_count(wasm) == {:ok, 1}

      failing = {fn 1 -> {:ok, 8} end, fn 8 -> exit(:free) end}

      assert catch_throw(
               Beamr.IO.with_alloc(wasm, 1, [allocator: failing], fn _ -> throw(:mine) end)
             ) == :mine
    end

    test "a free that fails after the function is an error" do
      wasm = guest()
      breaking = fn _pointer -> break_free(wasm) end

      for {lend, name} <- [
            {&Beamr.IO.with_string(wasm, "x", &1), :with_string!},
            {&Beamr.IO.with_alloc(wasm, 1, &1), :with_alloc!}
          ] do
        mend_free(wasm)
        assert {:error, %Trap{}} = lend.(breaking)
        mend_free(wasm)
        arg = if name == :with_string!, do: "x", else: 1
        assert_raise Trap, fn -> apply(Beamr.IO, name, [wasm, arg, breaking]) end
      end

      mend_free(wasm)
      breaking = fn _pointer, _length -> break_free(wasm) end
      assert {:error, %Trap{}} = Beamr.IO.with_bytes(wasm, "x", breaking)
      mend_free(wasm)
      assert_raise Trap, fn -> Beamr.IO.with_bytes!(wasm, "x", breaking) end
      assert Beamr.IO.held_count(wasm) == {:ok, 6}
    end

    test "an allocation that fails is an error, and the function is not called" do
      wasm = guest()
      never = fn _pointer -> flunk("called") end

      assert {:error, %MemoryError{reason: :malloc_failed}} =
               Beamr.IO.with_alloc(wasm, 666, never)

      none = Beamr.instantiate!("(module)")
      assert {:error, %CallError{}} = Beamr.IO.with_string(none, "x", never)

      assert {:error, %CallError{}} =
               Beamr.IO.with_bytes(none, "x", fn _, _ -> flunk("called") end)

      assert_raise CallError, fn -> Beamr.IO.with_alloc!(none, 1, never) end
    end

    test "raise for what is no iodata before anything is allocated" do
      wasm = guest()
      assert_raise ArgumentError, fn -> Beamr.IO.with_string(wasm, [:x], & &1) end
      assert_raise ArgumentError, fn -> Beamr.IO.with_bytes(wasm, [:x], &{&1, &2}) end
      assert Beamr.IO.malloc(wasm, 1) == {:ok, 1024}
    end

    test "may be nested, also inside imports" do
      imports = %{
        "env" => %{
          "i" => fn wasm ->
            {:ok, text} =
              Beamr.IO.with_string(wasm, "outer", fn outer ->
                Beamr.IO.with_bytes!(wasm, "inner", fn inner, 5 ->
                  Beamr.IO.read!(wasm, outer, 5) <> Beamr.IO.read!(wasm, inner, 5)
                end)
              end)

            byte_size(text)
          end
        }
      }

      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "i" (func $i (result i32)))
            (memory (export "memory") 1)
            #{bump_malloc()}
            (func (export "f") (result i32) (call $i)))
          """,
          imports: imports
        )

      assert Beamr.call(wasm, "f", []) == {:ok, [10]}
      assert Beamr.IO.held(wasm) == {:ok, []}
    end

    test "with_alloc/4 takes an allocator in place of malloc and free" do
      wasm = guest()
      test = self()

      allocator =
        {fn size ->
           send(test, {:alloc, size})
           {:ok, 512}
         end,
         fn pointer ->
           send(test, {:free, pointer})
           :ok
         end}

      assert Beamr.IO.with_alloc(wasm, 24, [allocator: allocator], & &1) == {:ok, 512}
      assert_received {:alloc, 24}
      assert_received {:free, 512}
      assert Beamr.IO.held(wasm) == {:ok, []}

      no_room = %MemoryError{reason: :malloc_failed}
      refusing = {fn _size -> {:error, no_room} end, fn _pointer -> flunk("freed") end}
      assert Beamr.IO.with_alloc(wasm, 1, [allocator: refusing], & &1) == {:error, no_room}

      for other <- [:bump, {1, 2}, fn -> 1 end, {fn -> 1 end, fn _ -> :ok end}] do
        assert_raise ArgumentError, fn ->
          Beamr.IO.with_alloc(wasm, 1, [allocator: other], & &1)
        end
      end
    end

    test "refuse what is no guest, size or function" do
      wasm = guest()
      assert_raise FunctionClauseError, fn -> Beamr.IO.with_string(untyped("no"), "x", & &1) end
      assert_raise FunctionClauseError, fn -> Beamr.IO.with_string(wasm, untyped(:x), & &1) end

      assert_raise FunctionClauseError, fn ->
        Beamr.IO.with_string(wasm, "x", untyped(&{&1, &2}))
      end

      assert_raise FunctionClauseError, fn -> Beamr.IO.with_bytes(wasm, "x", untyped(& &1)) end
      assert_raise FunctionClauseError, fn -> Beamr.IO.with_bytes(wasm, untyped(1), &{&1, &2}) end
      assert_raise FunctionClauseError, fn -> Beamr.IO.with_alloc(wasm, -1, & &1) end

      assert_raise FunctionClauseError, fn ->
        Beamr.IO.with_alloc(wasm, 1, [], untyped(&{&1, &2}))
      end
    end
  end

  describe "by a server's pid" do
    test "all of it works, and a reset ends what was held" do
      pid = start_supervised!({Beamr.Server, module: @guest, on_trap: :reset})
      me = self()
      assert Beamr.IO.malloc(pid, 8) == {:ok, 1024}
      assert Beamr.IO.held(pid) == {:ok, [{1024, 8, me}]}
      assert Beamr.IO.with_string(pid, "lent", &Beamr.IO.read_string!(pid, &1)) == {:ok, "lent"}
      assert Beamr.IO.held_count(pid) == {:ok, 1}
      assert {:error, %Trap{}} = Beamr.IO.free(pid, 13)
      eventually(fn -> Beamr.IO.held(pid) == {:ok, []} end)
    end
  end
end
