defmodule BeamrTest do
  use Beamr.Case, async: true

  alias Beamr.{CallError, CompileError, LinkError, Trap}

  doctest Beamr

  @wasm <<0, "asm", 1, 0, 0, 0>>
  @add ~S|(module (func (export "add") (param i32 i32) (result i32)
            (i32.add (local.get 0) (local.get 1))))|
  @not_binaries [nil, :module, 1, 1.5, ~c"(module)", <<1::1>>, %{}, {}]

  # No guest can be addressed by any of these.
  @not_instances [nil, true, 0, 1.5, "wasm", ~c"wasm", <<1::1>>, %{ref: nil}, {}, {1, 2}]

  describe "compile/2" do
    test "takes WebAssembly bytes" do
      assert {:ok, %Beamr.Module{}} = Beamr.compile(@wasm)
    end

    test "takes WebAssembly text" do
      assert {:ok, %Beamr.Module{}} = Beamr.compile("(module)")
    end

    test "takes bytes that are a part of a larger binary" do
      part = binary_part(<<1, 2, 3, @wasm::binary, 4, 5>>, 3, byte_size(@wasm))
      assert {:ok, %Beamr.Module{}} = Beamr.compile(part)
    end

    test "takes text with comments and any whitespace" do
      assert {:ok, %Beamr.Module{}} = Beamr.compile(";; first\r\n\t( module (; empty ;) )\n")
    end

    for term <- @not_binaries do
      test "refuses #{inspect(term)} by its guard" do
        assert_raise FunctionClauseError, fn ->
          Beamr.compile(untyped(unquote(Macro.escape(term))))
        end
      end
    end

    test "refuses options that it does not have" do
      assert_raise ArgumentError, fn -> Beamr.compile("(module)", colour: :blue) end
    end

    test "the module may be used by other processes, after its maker has died" do
      module = Task.await(Task.async(fn -> Beamr.compile!(@add) end))
      tasks = for n <- 1..20, do: Task.async(fn -> add_with_new_instance(module, n) end)
      assert Task.await_many(tasks) == for(n <- 1..20, do: {:ok, [2 * n]})
    end

    defp add_with_new_instance(module, n) do
      module |> Beamr.instantiate!() |> Beamr.call("add", [n, n])
    end
  end

  describe "compile!/2" do
    test "answers the module" do
      assert %Beamr.Module{} = Beamr.compile!(@wasm)
    end

    test "raises the error" do
      assert_raise CompileError, fn -> Beamr.compile!("(modul)") end
    end
  end

  describe "compile_file/2" do
    @describetag :tmp_dir

    test "reads bytes", %{tmp_dir: dir} do
      path = Path.join(dir, "guest.wasm")
      File.write!(path, @wasm)
      assert {:ok, %Beamr.Module{}} = Beamr.compile_file(path)
    end

    test "reads text, whatever the file is called", %{tmp_dir: dir} do
      path = Path.join(dir, "guest.wasm")
      File.write!(path, "(module)")
      assert {:ok, %Beamr.Module{}} = Beamr.compile_file(path)
    end

    test "a file that is not there", %{tmp_dir: dir} do
      path = Path.join(dir, "none.wasm")

      assert {:error, %CompileError{reason: {:file, :enoent}, path: ^path}} =
               Beamr.compile_file(path)
    end

    test "a directory", %{tmp_dir: dir} do
      assert {:error, %CompileError{reason: {:file, :eisdir}}} = Beamr.compile_file(dir)
    end

    test "an error in the file says which file", %{tmp_dir: dir} do
      path = Path.join(dir, "bad.wat")
      File.write!(path, "(module\n  (fun))")

      assert {:error, %CompileError{reason: :invalid_wat, line: 2, path: ^path} = error} =
               Beamr.compile_file(path)

      assert Exception.message(error) =~ path
    end

    test "compile_file!/2 answers the module, or raises the error", %{tmp_dir: dir} do
      path = Path.join(dir, "guest.wat")
      assert_raise CompileError, fn -> Beamr.compile_file!(path) end
      File.write!(path, "(module)")
      assert %Beamr.Module{} = Beamr.compile_file!(path)
    end
  end

  describe "instantiate/2" do
    test "takes a module" do
      assert {:ok, %Beamr.Instance{}} = Beamr.instantiate(Beamr.compile!("(module)"))
    end

    test "takes bytes" do
      assert {:ok, %Beamr.Instance{}} = Beamr.instantiate(@wasm)
    end

    test "takes text" do
      assert {:ok, %Beamr.Instance{}} = Beamr.instantiate("(module)")
    end

    test "source that does not compile is a CompileError" do
      assert {:error, %CompileError{}} = Beamr.instantiate("(modul)")
    end

    for term <- @not_binaries do
      test "refuses #{inspect(term)} by its guard" do
        assert_raise FunctionClauseError, fn ->
          Beamr.instantiate(untyped(unquote(Macro.escape(term))))
        end
      end
    end

    for {name, value} <- [
          imports: [],
          imports: nil,
          timeout: -1,
          timeout: 1.5,
          timeout: nil,
          timeout: 0x1_0000_0000,
          max_depth: 0,
          max_depth: -1,
          max_depth: :infinity,
          max_depth: 2 ** 70,
          imports: Macro.escape(%URI{}),
          import: nil,
          colour: :blue
        ] do
      test "refuses the option #{name}: #{inspect(value)}" do
        assert_raise ArgumentError, ~r/#{unquote(name)}/, fn ->
          Beamr.instantiate(@wasm, [{unquote(name), unquote(value)}])
        end
      end
    end

    test "takes timeout: :infinity" do
      assert {:ok, _wasm} = Beamr.instantiate(@wasm, timeout: :infinity)
    end

    test "instances of one module share nothing" do
      module =
        Beamr.compile!("""
        (module (memory (export "memory") 1) (global $n (mut i32) (i32.const 0))
          (func (export "next") (result i32)
            (global.set $n (i32.add (global.get $n) (i32.const 1)))
            (global.get $n)))
        """)

      [one, other] = for _ <- 1..2, do: Beamr.instantiate!(module)
      assert Beamr.call(one, "next", []) == {:ok, [1]}
      assert Beamr.call(one, "next", []) == {:ok, [2]}
      assert Beamr.call(other, "next", []) == {:ok, [1]}
      :ok = Beamr.IO.write(one, 0, "one")
      assert Beamr.IO.read(other, 0, 3) == {:ok, <<0, 0, 0>>}
    end

    test "an instance outlives the process that made it" do
      wasm = Task.await(Task.async(fn -> Beamr.instantiate!(@add) end))
      assert Beamr.call(wasm, "add", [1, 2]) == {:ok, [3]}
    end
  end

  describe "instantiate!/2" do
    test "raises the error" do
      assert_raise CompileError, fn -> Beamr.instantiate!("(modul)") end
      source = ~S|(module (import "env" "f" (func)))|
      assert_raise LinkError, fn -> Beamr.instantiate!(source) end
      assert_raise Trap, fn -> Beamr.instantiate!("(module (func $f unreachable) (start $f))") end
    end
  end

  describe "call/4" do
    test "answers the results in a list" do
      assert Beamr.call(Beamr.instantiate!(@add), "add", [40, 2]) == {:ok, [42]}
    end

    test "a function without results answers an empty list" do
      wasm = Beamr.instantiate!(~S|(module (func (export "f")))|)
      assert Beamr.call(wasm, "f", []) == {:ok, []}
    end

    test "a function with several results answers them in their order" do
      wasm =
        Beamr.instantiate!("""
        (module (func (export "f") (param i32) (result i32 f64 i64)
          (local.get 0) (f64.const 2.5) (i64.const -3)))
        """)

      assert Beamr.call(wasm, "f", [1]) == {:ok, [1, 2.5, -3]}
    end

    test "a function of many parameters and results" do
      n = 100
      types = String.duplicate(" i64", n)
      gets = Enum.map_join((n - 1)..0//-1, " ", &"(local.get #{&1})")

      wasm =
        Beamr.instantiate!(
          ~s|(module (func (export "reverse") (param#{types}) (result#{types}) #{gets}))|
        )

      args = Enum.to_list(1..n)
      assert Beamr.call(wasm, "reverse", args) == {:ok, Enum.reverse(args)}
    end

    test "a function may be exported by any name" do
      wasm = Beamr.instantiate!(~S|(module (func (export "") (export "naïve \00 🦀")))|)
      assert Beamr.call(wasm, "", []) == {:ok, []}
      assert Beamr.call(wasm, "naïve \0 🦀", []) == {:ok, []}
    end

    test "a name that is not exported, whatever it is, is an unknown function" do
      wasm = Beamr.instantiate!(@add)
      long = for length <- [300, 1_000_000], do: String.duplicate("f", length)

      for name <- ["mul", "", <<"add", 0xFF>>, "add\0", "ad" | long] do
        assert {:error, %CallError{reason: :unknown_function, function: ^name}} =
                 Beamr.call(wasm, name, [1, 2])
      end
    end

    test "an export that is no function is an unknown function" do
      wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1))|)

      assert {:error, %CallError{reason: :unknown_function, function: "memory"}} =
               Beamr.call(wasm, "memory", [])
    end

    test "the wrong number of arguments says how many are wanted" do
      wasm = Beamr.instantiate!(@add)

      for args <- [[], [1], [1, 2, 3], Enum.to_list(1..10_000)] do
        given = length(args)

        assert {:error, %CallError{reason: :arity, function: "add", wanted: 2, given: ^given}} =
                 Beamr.call(wasm, "add", args)
      end
    end

    test "an argument of the wrong type says which, what is wanted and what was given" do
      assert {:error, %CallError{} = error} =
               Beamr.call(Beamr.instantiate!(@add), "add", [1, :two])

      assert %{reason: :argument, function: "add", position: 2, wanted: :i32, given: :two} = error
    end

    test "of several wrong arguments the first is named" do
      assert {:error, %CallError{position: 1, given: 1.0}} =
               Beamr.call(Beamr.instantiate!(@add), "add", [1.0, 2.0])
    end

    test "a refused call runs nothing" do
      wasm =
        Beamr.instantiate!("""
        (module (memory (export "memory") 1)
          (func (export "f") (param i32) (i32.store8 (i32.const 0) (i32.const 1))))
        """)

      for args <- [[], [1, 2], [nil]], do: {:error, _error} = Beamr.call(wasm, "f", args)
      assert Beamr.IO.read(wasm, 0, 1) == {:ok, <<0>>}
    end

    for term <- @not_instances do
      test "refuses #{inspect(term)} in place of an instance by its guard" do
        assert_raise FunctionClauseError, fn ->
          Beamr.call(untyped(unquote(Macro.escape(term))), "f", [])
        end
      end
    end

    for name <- [nil, :add, ~c"add", 1, {"add"}, <<1::1>>] do
      test "refuses #{inspect(name)} in place of a function by its guard" do
        assert_raise FunctionClauseError, fn ->
          Beamr.call(Beamr.instantiate!(@add), untyped(unquote(Macro.escape(name))), [1, 2])
        end
      end
    end

    for args <- [nil, 1, {1, 2}, %{}, "ab", [1 | 2], [1, 2 | :x]] do
      test "refuses #{inspect(args)} in place of the arguments by its guard" do
        assert_raise FunctionClauseError, fn ->
          Beamr.call(Beamr.instantiate!(@add), "add", untyped(unquote(Macro.escape(args))))
        end
      end
    end

    for opts <- [
          [timeout: -1],
          [timeout: 0x1_0000_0000],
          [timeout: 0.5],
          [timeout: "1"],
          [time_out: 1],
          [timeout: 1, timeout: 2],
          [:timeout]
        ] do
      test "refuses the options #{inspect(opts)}" do
        assert_raise ArgumentError, fn ->
          Beamr.call(Beamr.instantiate!(@add), "add", [1, 2], unquote(opts))
        end
      end
    end

    test "takes timeout: :infinity" do
      wasm = Beamr.instantiate!(@add)
      assert Beamr.call(wasm, "add", [1, 2], timeout: :infinity) == {:ok, [3]}
    end

    test "past its time a guest is ended, and the instance stays usable" do
      wasm = Beamr.instantiate!(endless())

      for timeout <- [0, 20] do
        assert {:error, %CallError{reason: :timeout, function: "count"}} =
                 Beamr.call(wasm, "count", [], timeout: timeout)
      end

      assert Beamr.call(wasm, "f", []) == {:ok, [7]}
    end

    test "a call is not ended by the timeout of the one before" do
      wasm = Beamr.instantiate!(endless())
      {:error, _timeout} = Beamr.call(wasm, "count", [], timeout: 1)
      task = Task.async(fn -> Beamr.call(wasm, "count", [], timeout: :infinity) end)
      seen = counter(wasm)
      eventually(fn -> counter(wasm) > seen end)
      assert Task.yield(task, 0) == nil
    end
  end

  describe "call!/4" do
    test "answers the results" do
      assert Beamr.call!(Beamr.instantiate!(@add), "add", [40, 2]) == [42]
    end

    test "raises a CallError" do
      assert_raise CallError, fn -> Beamr.call!(Beamr.instantiate!(@add), "add", []) end
    end

    test "raises a trap" do
      wasm = Beamr.instantiate!(~S|(module (func (export "f") unreachable))|)
      assert_raise Trap, fn -> Beamr.call!(wasm, "f", []) end
    end

    test "takes the options of call/4" do
      wasm = Beamr.instantiate!(endless())
      assert_raise CallError, ~r/timed out/, fn -> Beamr.call!(wasm, "count", [], timeout: 1) end
    end
  end

  describe "close/1" do
    test "may be done again" do
      wasm = Beamr.instantiate!(@add)
      assert Beamr.close(wasm) == :ok
      assert Beamr.close(wasm) == :ok
    end

    test "may be done by any process" do
      wasm = Beamr.instantiate!(@add)
      assert Task.await(Task.async(fn -> Beamr.close(wasm) end)) == :ok
      assert {:error, %CallError{reason: :closed}} = Beamr.call(wasm, "add", [1, 2])
    end

    test "whatever is called afterwards, the answer is that the instance is closed" do
      wasm = Beamr.instantiate!(@add)
      :ok = Beamr.close(wasm)

      for {name, args} <- [{"add", [1, 2]}, {"add", []}, {"add", [:a, :b]}, {"mul", []}] do
        assert {:error, %CallError{reason: :closed}} = Beamr.call(wasm, name, args)
      end
    end

    test "leaves the module and its other instances as they are" do
      module = Beamr.compile!(@add)
      [one, other] = for _ <- 1..2, do: Beamr.instantiate!(module)
      :ok = Beamr.close(one)
      assert Beamr.call(other, "add", [1, 2]) == {:ok, [3]}
      assert {:ok, _wasm} = Beamr.instantiate(module)
    end

    test "ends a call that is in flight" do
      wasm = Beamr.instantiate!(endless())
      task = start_endless(wasm)
      assert Beamr.close(wasm) == :ok
      assert {:error, %CallError{reason: :closed}} = Task.await(task)
    end

    test "ends a call that is inside an import, once the import comes back" do
      wasm = holder()
      task = start_hold(wasm)
      assert Beamr.close(wasm) == :ok
      assert Task.yield(task, 0) == nil
      assert {:error, %Beamr.MemoryError{reason: :closed}} = Beamr.IO.size(wasm)
      send(task.pid, :go_on)
      assert {:error, %CallError{reason: :closed}} = Task.await(task)
    end

    test "ends the waiting of those who queue for the instance" do
      wasm = holder()
      held = start_hold(wasm)
      waiting = for _ <- 1..3, do: Task.async(fn -> Beamr.call(wasm, "next", []) end)
      for task <- waiting, do: await_waiting(task.pid)
      :ok = Beamr.close(wasm)

      for result <- Task.await_many(waiting) do
        assert {:error, %CallError{reason: :closed}} = result
      end

      send(held.pid, :go_on)
      assert {:error, %CallError{reason: :closed}} = Task.await(held)
    end

    test "by the import itself ends the call" do
      close = fn wasm -> Beamr.close(wasm) end

      wasm =
        Beamr.instantiate!(
          ~S|(module (import "env" "close" (func $close)) (func (export "f") (call $close)))|,
          imports: %{"env" => %{"close" => close}}
        )

      assert {:error, %CallError{reason: :closed}} = Beamr.call(wasm, "f", [])
      assert {:error, %CallError{reason: :closed}} = Beamr.call(wasm, "f", [])
    end

    test "by an import of a nested call ends every call" do
      test = self()

      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "outer" (func $outer))
            (import "env" "inner" (func $inner))
            (func (export "f") (call $outer))
            (func (export "g") (call $inner)))
          """,
          imports: %{
            "env" => %{
              "outer" => fn wasm -> send(test, {:nested, Beamr.call(wasm, "g", [])}) end,
              "inner" => fn wasm -> Beamr.close(wasm) end
            }
          }
        )

      assert {:error, %CallError{reason: :closed}} = Beamr.call(wasm, "f", [])
      assert_received {:nested, {:error, %CallError{reason: :closed}}}
    end

    for term <- @not_instances do
      test "refuses #{inspect(term)} by its guard" do
        assert_raise FunctionClauseError, fn ->
          Beamr.close(untyped(unquote(Macro.escape(term))))
        end
      end
    end
  end
end
