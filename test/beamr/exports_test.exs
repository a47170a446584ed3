defmodule Beamr.ExportsTest do
  # Exported globals, tables and memories, from outside, inside imports, and while guests loop.
  use Beamr.Case, async: true

  alias Beamr.{CallError, ExportError, Instance, MemoryError, Trap}

  # Loops until it is interrupted; says at 0 that it does.
  @loop """
  (memory (export "memory") 1)
  (func (export "loop")
    (loop $again
      (i64.store (i32.const 0) (i64.add (i64.load (i32.const 0)) (i64.const 1)))
      (br $again)))
  """

  @globals """
  (module
    #{@loop}
    (import "env" "i" (func $i))
    (func $f (result i32) (i32.const 7))
    (elem declare func $f)
    (global $i32 (export "i32") (mut i32) (i32.const -1))
    (global $i64 (export "i64") (mut i64) (i64.const -2))
    (global $f32 (export "f32") (mut f32) (f32.const 1.5))
    (global (export "f64") (mut f64) (f64.const nan))
    (global (export "v128") (mut v128) (v128.const i8x16 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15))
    (global $func (export "func") (mut funcref) (ref.func $f))
    (global $extern (export "extern") (mut externref) (ref.null extern))
    (global (export "some") (mut (ref func)) (ref.func $f))
    (global (export "const") i32 (i32.const 42))
    (func (export "get") (result i32) (global.get $i32))
    (func (export "set") (param i32) (global.set $i32 (local.get 0)))
    (func (export "get_extern") (result externref) (global.get $extern))
    (func (export "get_func") (result funcref) (global.get $func))
    (func (export "f") (call $i))
    (export "same" (global $i32)))
  """

  # Imports stand before all else in a module's text.
  defp source(text) do
    import = ~S|(import "env" "i" (func $i))|
    text |> String.replace(import, "") |> String.replace("(module", "(module " <> import)
  end

  defp globals(import \\ fn _wasm -> nil end) do
    Beamr.instantiate!(source(@globals), imports: %{"env" => %{"i" => import}})
  end

  # `t` may grow to 6. Both tables are also changed by the guest.
  @tables """
  (module
    #{@loop}
    (import "env" "i" (func $i))
    (type $binary (func (param i32 i32) (result i32)))
    (func $add (type $binary) (i32.add (local.get 0) (local.get 1)))
    (func $sub (type $binary) (i32.sub (local.get 0) (local.get 1)))
    (func $nullary (export "nullary"))
    (table $t (export "t") 3 6 funcref)
    (table $x (export "x") 1 externref)
    (table (export "typed") 2 (ref null $binary))
    (elem (table $t) (i32.const 0) func $add $sub)
    (func (export "add") (type $binary) (call $add (local.get 0) (local.get 1)))
    (func (export "apply") (param i32 i32 i32) (result i32)
      (call_indirect $t (type $binary) (local.get 1) (local.get 2) (local.get 0)))
    (func (export "grow") (param i32) (result i32) (table.grow $t (ref.null func) (local.get 0)))
    (func (export "get_x") (param i32) (result externref) (table.get $x (local.get 0)))
    (func (export "f") (call $i)))
  """

  defp tables(import \\ fn _wasm -> nil end) do
    Beamr.instantiate!(source(@tables), imports: %{"env" => %{"i" => import}})
  end

  # Runs the function in an import of the guest, in the process that calls `f`.
  defp in_import(make, function) do
    test = self()
    wasm = make.(fn wasm -> send(test, {:in_import, function.(wasm)}) end)
    assert Beamr.call(wasm, "f", []) == {:ok, []}
    assert_received {:in_import, result}
    result
  end

  # Runs the function in another process while the guest loops, and lets the loop end when that
  # process waits for it.
  defp while_looping(wasm, function) do
    before = counter(wasm)
    loop = Task.async(fn -> Beamr.call(wasm, "loop", [], timeout: :infinity) end)
    eventually(fn -> counter(wasm) > before end)
    asking = Task.async(function)
    await_waiting(asking.pid)
    assert Task.yield(asking, 0) == nil
    Beamr.interrupt(wasm)
    assert {:error, %CallError{reason: :interrupted}} = Task.await(loop)
    Task.await(asking)
  end

  describe "globals" do
    test "of every type are read" do
      wasm = globals()
      assert Instance.get_global(wasm, "i32") == {:ok, -1}
      assert Instance.get_global(wasm, "i64") == {:ok, -2}
      assert Instance.get_global(wasm, "f32") == {:ok, 1.5}
      assert Instance.get_global(wasm, "f64") == {:ok, :nan}

      assert Instance.get_global(wasm, "v128") ==
               {:ok, <<0..15//1 |> Enum.into(<<>>, &<<&1>>)::binary>>}

      assert Instance.get_global(wasm, "extern") == {:ok, nil}
      assert Instance.get_global(wasm, "const") == {:ok, 42}
      assert {:ok, function} = Instance.get_global(wasm, "func")
      assert Beamr.call(wasm, function, []) == {:ok, [7]}
    end

    for {name, values} <- [
          {"i32", [0, -(2 ** 31), 2 ** 31 - 1]},
          {"i64", [0, -(2 ** 63), 2 ** 63 - 1]},
          {"f32", [-0.0, 0.5, :nan, :infinity, :neg_infinity]},
          {"f64", [-0.0, 0.1, 1.0e300, :nan, :infinity, :neg_infinity]},
          {"v128", ["0123456789abcdef"]},
          {"extern", [nil, :atom, %{deep: [1, "two", {3.0}]}, self()]},
          {"func", [nil]}
        ] do
      test "#{name} is set to what it then has" do
        wasm = globals()

        for value <- unquote(Macro.escape(Enum.reject(values, &is_pid/1))) do
          assert Instance.set_global(wasm, unquote(name), value) == :ok
          assert {:ok, ^value} = Instance.get_global(wasm, unquote(name))
        end
      end
    end

    test "take unsigned integers, and have signed ones" do
      wasm = globals()
      assert Instance.set_global(wasm, "i32", 2 ** 32 - 1) == :ok
      assert Instance.get_global(wasm, "i32") == {:ok, -1}
      assert Instance.set_global(wasm, "i64", 2 ** 64 - 3) == :ok
      assert Instance.get_global(wasm, "i64") == {:ok, -3}
    end

    test "are the guest's own" do
      wasm = globals()
      :ok = Instance.set_global(wasm, "i32", 9)
      assert Beamr.call(wasm, "get", []) == {:ok, [9]}
      assert Beamr.call(wasm, "set", [10]) == {:ok, []}
      assert Instance.get_global(wasm, "i32") == {:ok, 10}
      assert Instance.get_global(wasm, "same") == {:ok, 10}

      term = {make_ref(), self(), fn -> :run end}
      :ok = Instance.set_global(wasm, "extern", term)
      assert Beamr.call(wasm, "get_extern", []) == {:ok, [term]}
    end

    test "hold functions that are called by what they answer" do
      wasm = globals()
      {:ok, function} = Instance.get_global(wasm, "func")
      :ok = Instance.set_global(wasm, "func", nil)
      assert Beamr.call(wasm, "get_func", []) == {:ok, [nil]}
      :ok = Instance.set_global(wasm, "func", function)
      {:ok, [again]} = Beamr.call(wasm, "get_func", [])
      assert Beamr.call(wasm, again, []) == {:ok, [7]}
    end

    test "are each instance's own" do
      module = Beamr.compile!(source(@globals))
      imports = %{"env" => %{"i" => fn _wasm -> nil end}}
      [one, other] = for _ <- 1..2, do: Beamr.instantiate!(module, imports: imports)
      :ok = Instance.set_global(one, "i32", 5)
      assert Instance.get_global(other, "i32") == {:ok, -1}
    end

    test "that are immutable are not set" do
      wasm = globals()

      assert {:error, %ExportError{reason: :immutable, kind: :global, name: "const"} = error} =
               Instance.set_global(wasm, "const", 1)

      assert Exception.message(error) =~ "immutable"
      assert Instance.get_global(wasm, "const") == {:ok, 42}
    end

    test "that are not exported are unknown, and so is what is no global" do
      wasm = globals()

      for name <- ["nope", "", "get", "memory", "i32\0"] do
        assert {:error, %ExportError{reason: :unknown_export, kind: :global, name: ^name}} =
                 Instance.get_global(wasm, name)

        assert {:error, %ExportError{reason: :unknown_export, kind: :global, name: ^name}} =
                 Instance.set_global(wasm, name, 1)
      end
    end

    for {name, type, values} <- [
          {"i32", :i32, [2 ** 32, -(2 ** 31) - 1, 1.0, nil, "1", :nan]},
          {"i64", :i64, [2 ** 64, -(2 ** 63) - 1, 1.0, nil]},
          {"f32", :f32, [1.0e39, "1", nil, :inf]},
          {"f64", :f64, ["1", nil, :inf]},
          {"v128", :v128,
           ["15 bytes exactly", 1, nil] |> Enum.map(&if(is_binary(&1), do: "x", else: &1))},
          {"func", :funcref, [1, :f, "f"]}
        ] do
      test "#{name} refuses what is not of its type or range, and keeps what it has" do
        wasm = globals()
        before = Instance.get_global(wasm, unquote(name))

        for value <- unquote(values) do
          assert {:error, %ExportError{reason: :type} = error} =
                   Instance.set_global(wasm, unquote(name), value)

          assert {error.wanted, error.given, error.name} ==
                   {unquote(type), value, unquote(name)}

          assert is_binary(Exception.message(error))
        end

        if unquote(name) != "func" do
          assert Instance.get_global(wasm, unquote(name)) == before
        end
      end
    end

    test "refuse nil where the type does" do
      assert {:error, %ExportError{reason: :type, given: nil}} =
               Instance.set_global(globals(), "some", nil)
    end

    test "refuse functions of other instances" do
      wasm = globals()
      {:ok, foreign} = Instance.get_global(globals(), "func")

      for name <- ["func", "some"] do
        assert {:error, %ExportError{reason: :foreign_function, given: ^foreign}} =
                 Instance.set_global(wasm, name, foreign)
      end

      {:ok, function} = Instance.get_global(wasm, "func")
      assert Beamr.call(wasm, function, []) == {:ok, [7]}
    end

    test "are read and set inside an import, and the guest sees it" do
      result =
        in_import(&globals/1, fn wasm ->
          before = Instance.get_global!(wasm, "i32")
          :ok = Instance.set_global!(wasm, "i32", 77)
          error = Instance.set_global(wasm, "i32", :x)
          {before, Beamr.call!(wasm, "get", []), elem(error, 1).reason}
        end)

      assert result == {-1, [77], :type}
    end

    test "are read by other processes inside an import" do
      assert in_import(&globals/1, fn wasm ->
               Task.await(Task.async(fn -> Instance.get_global(wasm, "const") end))
             end) == {:ok, 42}
    end

    test "are read and set by another process when the guest that loops has ended" do
      wasm = globals()
      assert while_looping(wasm, fn -> Instance.get_global(wasm, "const") end) == {:ok, 42}
      assert while_looping(wasm, fn -> Instance.set_global(wasm, "i32", 5) end) == :ok
      assert Instance.get_global(wasm, "i32") == {:ok, 5}
    end

    test "that cannot be set are refused at once, though the guest loops" do
      wasm = globals()
      loop = Task.async(fn -> Beamr.call(wasm, "loop", [], timeout: :infinity) end)
      eventually(fn -> counter(wasm) > 0 end)
      assert {:error, %ExportError{reason: :immutable}} = Instance.set_global(wasm, "const", 1)
      assert {:error, %ExportError{reason: :type}} = Instance.set_global(wasm, "i32", :x)
      assert {:error, %ExportError{reason: :unknown_export}} = Instance.get_global(wasm, "nope")
      assert Task.yield(loop, 0) == nil
    end

    test "of a closed instance are closed" do
      wasm = globals()
      Beamr.close(wasm)
      assert {:error, %ExportError{reason: :closed}} = Instance.get_global(wasm, "i32")
      assert {:error, %ExportError{reason: :closed}} = Instance.set_global(wasm, "i32", 1)
    end

    test "have bang forms that raise" do
      wasm = globals()
      assert Instance.get_global!(wasm, "const") == 42
      assert Instance.set_global!(wasm, "i32", 1) == :ok
      assert_raise ExportError, ~r/"nope"/, fn -> Instance.get_global!(wasm, "nope") end
      assert_raise ExportError, ~r/i32/, fn -> Instance.set_global!(wasm, "i32", "x") end
    end
  end

  describe "tables" do
    test "have a size" do
      wasm = tables()
      assert Instance.table_size(wasm, "t") == {:ok, 3}
      assert Instance.table_size(wasm, "x") == {:ok, 1}
      assert Beamr.call(wasm, "grow", [2]) == {:ok, [3]}
      assert Instance.table_size!(wasm, "t") == 5
    end

    test "of functions answer what can be called" do
      wasm = tables()
      add = Instance.table_get!(wasm, "t", 0)
      sub = Instance.table_get!(wasm, "t", 1)
      assert Beamr.call(wasm, add, [50, 8]) == {:ok, [58]}
      assert Beamr.call(wasm, sub, [50, 8]) == {:ok, [42]}
      assert Instance.table_get(wasm, "t", 2) == {:ok, nil}
      assert {:error, %CallError{reason: :arity, wanted: 2}} = Beamr.call(wasm, add, [1])
    end

    test "of functions are set for the guest" do
      wasm = tables()
      add = Instance.table_get!(wasm, "t", 0)

      assert {:error, %Trap{reason: :indirect_call_to_null}} =
               Beamr.call(wasm, "apply", [2, 9, 3])

      assert Instance.table_set(wasm, "t", 2, add) == :ok
      assert Beamr.call(wasm, "apply", [2, 9, 3]) == {:ok, [12]}
      assert Instance.table_set(wasm, "t", 0, nil) == :ok

      assert {:error, %Trap{reason: :indirect_call_to_null}} =
               Beamr.call(wasm, "apply", [0, 9, 3])

      # What was taken out before is still a function.
      assert Beamr.call(wasm, add, [1, 2]) == {:ok, [3]}
    end

    test "of external references hold any term" do
      wasm = tables()

      for term <- [nil, 1, "text", %{a: {make_ref(), self()}}, [1 | 2]] do
        assert Instance.table_set(wasm, "x", 0, term) == :ok
        assert Instance.table_get(wasm, "x", 0) == {:ok, term}
        assert Beamr.call(wasm, "get_x", [0]) == {:ok, [term]}
      end
    end

    test "grow, and answer the size before" do
      wasm = tables()
      assert Instance.table_grow(wasm, "x", 3, {:new, 1}) == {:ok, 1}
      assert Instance.table_size(wasm, "x") == {:ok, 4}
      for index <- 1..3, do: assert(Instance.table_get(wasm, "x", index) == {:ok, {:new, 1}})
      assert Instance.table_get(wasm, "x", 0) == {:ok, nil}
      assert Instance.table_grow(wasm, "x", 0, nil) == {:ok, 4}

      add = Instance.table_get!(wasm, "t", 0)
      assert Instance.table_grow(wasm, "t", 2, add) == {:ok, 3}
      assert Beamr.call(wasm, "apply", [4, 20, 22]) == {:ok, [42]}
    end

    test "grow up to their maximum, and a growth past it changes nothing" do
      wasm = tables()

      for delta <- [4, 2 ** 32, 2 ** 64 - 1, 2 ** 64, 10 ** 30] do
        assert {:error, %ExportError{reason: :cannot_grow, kind: :table, name: "t"} = error} =
                 Instance.table_grow(wasm, "t", delta, nil)

        assert {error.given, error.size} == {delta, 3}
        assert Exception.message(error) =~ "cannot grow by #{delta}"
      end

      assert Instance.table_size(wasm, "t") == {:ok, 3}
      assert Instance.table_grow(wasm, "t", 3, nil) == {:ok, 3}
      assert Beamr.call(wasm, "grow", [1]) == {:ok, [-1]}
    end

    test "have elements below their size only" do
      wasm = tables()
      add = Instance.table_get!(wasm, "t", 0)

      for index <- [3, 2 ** 32, 2 ** 64 - 1, 2 ** 64, 10 ** 30] do
        for result <- [
              Instance.table_get(wasm, "t", index),
              Instance.table_set(wasm, "t", index, nil),
              Instance.table_set(wasm, "t", index, add)
            ] do
          assert {:error, %ExportError{reason: :out_of_bounds, name: "t"} = error} = result
          assert {error.given, error.size} == {index, 3}
          assert Exception.message(error) =~ "index #{index} "
        end
      end
    end

    test "or globals whose names are no UTF-8 are unknown, as functions are" do
      wasm = tables()

      assert {:error, %CallError{reason: :unknown_function}} = Beamr.call(wasm, <<0xFF>>, [])

      assert {:error, %ExportError{reason: :unknown_export}} = Instance.table_size(wasm, <<0xFF>>)

      assert {:error, %ExportError{reason: :unknown_export}} = Instance.get_global(wasm, <<0xFF>>)
    end

    test "that are not exported are unknown, and so is what is no table" do
      wasm = tables()

      for name <- ["nope", "", "add", "memory"] do
        for result <- [
              Instance.table_size(wasm, name),
              Instance.table_get(wasm, name, 0),
              Instance.table_set(wasm, name, 0, nil),
              Instance.table_grow(wasm, name, 1, nil)
            ] do
          assert {:error, %ExportError{reason: :unknown_export, kind: :table, name: ^name}} =
                   result
        end
      end
    end

    test "refuse what is not of their type" do
      wasm = tables()

      for value <- [1, :f, "f", self(), make_ref()] do
        for result <- [
              Instance.table_set(wasm, "t", 0, value),
              Instance.table_grow(wasm, "t", 1, value)
            ] do
          assert {:error, %ExportError{reason: reason, given: ^value}} = result
          assert reason in [:type, :foreign_function]
        end
      end

      assert Beamr.call(wasm, "apply", [0, 1, 2]) == {:ok, [3]}
      assert Instance.table_size(wasm, "t") == {:ok, 3}
    end

    test "of one function type refuse functions of another" do
      wasm = tables()
      add = Instance.table_get!(wasm, "t", 0)
      assert Instance.table_set(wasm, "typed", 0, add) == :ok
      assert Beamr.call(wasm, Instance.table_get!(wasm, "typed", 0), [1, 2]) == {:ok, [3]}

      # A function without parameters and results.
      other =
        Beamr.instantiate!("""
        (module (type $binary (func (param i32 i32) (result i32)))
          (func $nullary)
          (table (export "any") funcref (elem $nullary))
          (table (export "typed") 1 (ref null $binary)))
        """)

      nullary = Instance.table_get!(other, "any", 0)

      assert {:error, %ExportError{reason: :type, given: ^nullary}} =
               Instance.table_set(other, "typed", 0, nullary)

      assert {:error, %ExportError{reason: :type, given: ^nullary}} =
               Instance.table_grow(other, "typed", 1, nullary)
    end

    test "refuse functions of other instances" do
      wasm = tables()
      foreign = Instance.table_get!(tables(), "t", 0)

      for result <- [
            Instance.table_set(wasm, "t", 0, foreign),
            Instance.table_grow(wasm, "t", 1, foreign)
          ] do
        assert {:error, %ExportError{reason: :foreign_function, given: ^foreign}} = result
      end

      assert {:error, %CallError{reason: :foreign_function}} = Beamr.call(wasm, foreign, [1, 2])
      assert Instance.table_size(wasm, "t") == {:ok, 3}
    end

    test "hold functions of other instances as external references, which are no functions then" do
      wasm = tables()
      foreign = Instance.table_get!(tables(), "t", 0)
      assert Instance.table_set(wasm, "x", 0, foreign) == :ok
      assert Instance.table_get(wasm, "x", 0) == {:ok, foreign}
    end

    test "are used inside an import" do
      result =
        in_import(&tables/1, fn wasm ->
          add = Instance.table_get!(wasm, "t", 0)
          3 = Instance.table_grow!(wasm, "t", 1, add)
          :ok = Instance.table_set!(wasm, "t", 0, nil)
          {:error, %ExportError{reason: :out_of_bounds}} = Instance.table_get(wasm, "t", 4)
          {:error, %ExportError{reason: :cannot_grow}} = Instance.table_grow(wasm, "t", 9, nil)

          {Instance.table_size!(wasm, "t"), Beamr.call!(wasm, "apply", [3, 20, 22]),
           Beamr.call!(wasm, add, [1, 2])}
        end)

      assert result == {4, [42], [3]}
    end

    test "are used inside a nested import" do
      test = self()

      wasm =
        tables(fn wasm ->
          case Instance.table_size!(wasm, "x") do
            size when size < 5 ->
              ^size = Instance.table_grow!(wasm, "x", 1, size)
              [] = Beamr.call!(wasm, "f", [])

            size ->
              send(test, for(index <- 0..(size - 1), do: Instance.table_get!(wasm, "x", index)))
          end
        end)

      assert Beamr.call(wasm, "f", []) == {:ok, []}
      assert_received [nil, 1, 2, 3, 4]
    end

    test "are used by another process when the guest that loops has ended" do
      wasm = tables()
      assert while_looping(wasm, fn -> Instance.table_size(wasm, "t") end) == {:ok, 3}
      assert while_looping(wasm, fn -> Instance.table_set(wasm, "x", 0, :set) end) == :ok
      assert while_looping(wasm, fn -> Instance.table_get(wasm, "x", 0) end) == {:ok, :set}
      assert while_looping(wasm, fn -> Instance.table_grow(wasm, "x", 1, 2) end) == {:ok, 1}
    end

    test "of a closed instance are closed" do
      wasm = tables()
      Beamr.close(wasm)

      for result <- [
            Instance.table_size(wasm, "t"),
            Instance.table_get(wasm, "t", 0),
            Instance.table_set(wasm, "t", 0, nil),
            Instance.table_grow(wasm, "t", 1, nil)
          ] do
        assert {:error, %ExportError{reason: :closed}} = result
      end
    end

    test "have bang forms that raise" do
      wasm = tables()
      assert Instance.table_set!(wasm, "x", 0, 1) == :ok
      assert Instance.table_get!(wasm, "x", 0) == 1
      assert Instance.table_grow!(wasm, "x", 1, 2) == 1
      assert_raise ExportError, ~r/"nope"/, fn -> Instance.table_size!(wasm, "nope") end
      assert_raise ExportError, ~r/index 9/, fn -> Instance.table_get!(wasm, "t", 9) end
      assert_raise ExportError, ~r/index 9/, fn -> Instance.table_set!(wasm, "t", 9, nil) end
      assert_raise ExportError, ~r/grow by 9/, fn -> Instance.table_grow!(wasm, "t", 9, nil) end
    end
  end

  describe "the wait for a turn" do
    test "leaves no message, and is in the order of arrival with calls" do
      wasm = globals()
      loop = Task.async(fn -> Beamr.call(wasm, "loop", [], timeout: :infinity) end)
      eventually(fn -> counter(wasm) > 0 end)

      # Reads and calls that set, in turns.
      tasks =
        for n <- 1..10 do
          task =
            Task.async(fn ->
              result =
                case rem(n, 2) do
                  0 -> Instance.get_global(wasm, "i32")
                  1 -> Beamr.call(wasm, "set", [n], timeout: :infinity)
                end

              {result, Process.info(self(), :messages)}
            end)

          await_waiting(task.pid)
          task
        end

      Beamr.interrupt(wasm)
      assert {:error, %CallError{reason: :interrupted}} = Task.await(loop)

      assert Task.await_many(tasks) ==
               for(
                 n <- 1..10,
                 do: {if(rem(n, 2) == 0, do: {:ok, n - 1}, else: {:ok, []}), {:messages, []}}
               )
    end

    test "of a process that dies is passed on" do
      wasm = globals()
      loop = Task.async(fn -> Beamr.call(wasm, "loop", [], timeout: :infinity) end)
      eventually(fn -> counter(wasm) > 0 end)
      gone = Task.async(fn -> Instance.set_global(wasm, "i32", 1_000) end)
      await_waiting(gone.pid)
      next = Task.async(fn -> Instance.get_global(wasm, "i32") end)
      await_waiting(next.pid)
      kill(gone.pid)
      Beamr.interrupt(wasm)
      assert {:error, %CallError{reason: :interrupted}} = Task.await(loop)
      assert Task.await(next) == {:ok, -1}
    end
  end

  describe "inside an import of the start function" do
    test "globals and tables are there, for other processes too" do
      test = self()

      wasm =
        Beamr.instantiate!(
          """
          (module (import "env" "i" (func $i))
            (global $g (export "g") (mut i32) (i32.const 1))
            (global $seen (export "seen") (mut i32) (i32.const 0))
            (table (export "t") 1 externref)
            (func $start (call $i) (global.set $seen (global.get $g)))
            (start $start))
          """,
          imports: %{
            "env" => %{
              "i" => fn wasm ->
                :ok = Instance.set_global(wasm, "g", 2)
                asked = Task.async(fn -> Instance.table_grow(wasm, "t", 1, :new) end)
                send(test, {:asked, Task.await(asked), Instance.table_get(wasm, "t", 1)})
              end
            }
          }
        )

      assert_received {:asked, {:ok, 1}, {:ok, :new}}
      assert Instance.get_global(wasm, "seen") == {:ok, 2}
    end
  end

  describe "guards" do
    test "refuse what is no name, no index and no guest" do
      wasm = tables()

      for call <- [
            fn -> Instance.get_global(wasm, untyped(:i32)) end,
            fn -> Instance.set_global(wasm, untyped(nil), 1) end,
            fn -> Instance.table_size(wasm, untyped(1)) end,
            fn -> Instance.table_get(wasm, "t", -1) end,
            fn -> Instance.table_get(wasm, "t", untyped(1.0)) end,
            fn -> Instance.table_set(wasm, "t", -1, nil) end,
            fn -> Instance.table_grow(wasm, "t", -1, nil) end,
            fn -> Instance.add_fuel(wasm, -1) end,
            fn -> Instance.add_fuel(wasm, untyped(1.5)) end,
            fn -> Instance.get_global(untyped("wasm"), "i32") end,
            fn -> Instance.fuel(untyped(nil)) end
          ] do
        assert_raise FunctionClauseError, call
      end
    end
  end

  describe "memory: of Beamr.IO" do
    defp memories(import \\ fn _wasm -> nil end) do
      Beamr.instantiate!(
        """
        (module
          (import "env" "i" (func $i))
          (memory $first (export "first") 1)
          (memory $second (export "second") 2)
          (memory (export "none") 0)
          (data (memory $first) (i32.const 0) "first\\00")
          (data (memory $second) (i32.const 0) "second\\00")
          (func (export "grow") (result i32) (memory.grow $second (i32.const 1)))
          (func (export "get") (result i32) (i32.load8_u $second (i32.const 70000)))
          (func (export "f") (call $i)))
        """,
        imports: %{"env" => %{"i" => import}}
      )
    end

    test "chooses an exported memory by its name" do
      wasm = memories()
      assert Beamr.IO.read_string(wasm, 0, 4096, memory: "first") == {:ok, "first"}
      assert Beamr.IO.read_string(wasm, 0, 4096, memory: "second") == {:ok, "second"}
      assert Beamr.IO.read(wasm, 0, 3, memory: "second") == {:ok, "sec"}
      assert Beamr.IO.size(wasm, memory: "second") == {:ok, 131_072}
      assert Beamr.IO.size(wasm, memory: "none") == {:ok, 0}
    end

    test "is the first without it, or with nil" do
      wasm = memories()
      assert Beamr.IO.read_string(wasm, 0) == {:ok, "first"}
      assert Beamr.IO.read_string(wasm, 0, 4096, memory: nil) == {:ok, "first"}
    end

    test "is written, and no other is" do
      wasm = memories()
      assert Beamr.IO.write(wasm, 70_000, <<42>>, memory: "second") == :ok
      assert Beamr.call(wasm, "get", []) == {:ok, [42]}

      assert {:error, %MemoryError{reason: :out_of_bounds, size: 65_536, memory: "first"}} =
               Beamr.IO.write(wasm, 70_000, <<42>>, memory: "first")
    end

    test "follows the memory as it grows" do
      wasm = memories()
      assert Beamr.call(wasm, "grow", []) == {:ok, [2]}
      assert Beamr.IO.size(wasm, memory: "second") == {:ok, 3 * 65_536}
      assert Beamr.IO.size(wasm, memory: "first") == {:ok, 65_536}
    end

    test "that is not exported is unknown" do
      wasm = memories()

      for name <- ["nope", "", "f", "first\0"] do
        for result <- [
              Beamr.IO.size(wasm, memory: name),
              Beamr.IO.read(wasm, 0, 1, memory: name),
              Beamr.IO.read_string(wasm, 0, 4096, memory: name),
              Beamr.IO.write(wasm, 0, "x", memory: name)
            ] do
          assert {:error, %MemoryError{reason: :unknown_memory, memory: ^name} = error} = result
          assert Exception.message(error) =~ inspect(name)
        end
      end
    end

    test "is a string" do
      wasm = memories()

      for name <- [:first, 0, ~c"first"] do
        assert_raise ArgumentError, fn -> Beamr.IO.size(wasm, memory: name) end
      end

      assert_raise ArgumentError, fn -> Beamr.IO.size(wasm, name: "first") end
    end

    test "works inside an import" do
      assert in_import(&memories/1, fn wasm ->
               :ok = Beamr.IO.write(wasm, 70_000, <<9>>, memory: "second")
               [2] = Beamr.call!(wasm, "grow", [])

               {Beamr.call!(wasm, "get", []), Beamr.IO.size!(wasm, memory: "second"),
                Beamr.IO.read_string!(wasm, 0, 1, memory: "first")}
             end) == {[9], 3 * 65_536, "first"}
    end
  end
end
