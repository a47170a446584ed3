defmodule Beamr.InstanceTest do
  use Beamr.Case, async: true

  alias Beamr.{CallError, ImportError, LinkError, Trap}

  doctest Beamr.Instance

  # `f` calls the import and adds 1 to what it answers; `ok` needs no import.
  @one_import """
  (module
    (import "env" "i" (func $i (param i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "f") (param i32) (result i32)
      (i32.add (call $i (local.get 0)) (i32.const 1)))
    (func (export "ok") (result i32) (i32.const 7)))
  """

  defp with_import(function, opts \\ []) do
    Beamr.instantiate!(@one_import, [imports: %{"env" => %{"i" => function}}] ++ opts)
  end

  defp function(params, results), do: {:function, %{params: params, results: results}}

  describe "linking" do
    @imports """
    (module
      (import "env" "a" (func (param i32)))
      (import "env" "ok" (func (param i64) (result i64)))
      (import "env" "b" (func))
      (import "x" "c" (func (result i64)))
      (import "env" "m" (memory 1))
      (import "env" "g" (global i32)))
    """

    test "lists all that is missing or does not fit, in the module's order" do
      arity_1 = fn _wasm -> nil end

      env = %{"ok" => fn _wasm, n -> n end, "a" => arity_1, "b" => :nope, "m" => "memory"}

      assert {:error, %LinkError{reason: :imports, imports: problems}} =
               Beamr.instantiate(@imports, imports: %{"env" => env})

      memory =
        {:memory, %{minimum: 1, maximum: nil, index_type: :i32, page_size: 65_536, shared: false}}

      assert problems == [
               %{
                 module: "env",
                 name: "a",
                 problem: :type,
                 wanted: function([:i32], []),
                 given: arity_1
               },
               %{
                 module: "env",
                 name: "b",
                 problem: :type,
                 wanted: function([], []),
                 given: :nope
               },
               %{
                 module: "x",
                 name: "c",
                 problem: :missing,
                 wanted: function([], [:i64]),
                 given: nil
               },
               %{module: "env", name: "m", problem: :type, wanted: memory, given: "memory"},
               %{
                 module: "env",
                 name: "g",
                 problem: :missing,
                 wanted: {:global, %{type: :i32, mutable: false}},
                 given: nil
               }
             ]
    end

    test "without any imports given, all are missing" do
      assert {:error, %LinkError{imports: problems}} = Beamr.instantiate(@imports)
      assert for(%{problem: :missing, name: name} <- problems, do: name) == ~w(a ok b c m g)
    end

    test "what the module does not import is ignored" do
      imports = %{"env" => %{"i" => fn _wasm, n -> n end, "more" => :x}, "other" => :y}
      assert {:ok, wasm} = Beamr.instantiate(@one_import, imports: imports)
      assert Beamr.call(wasm, "f", [1]) == {:ok, [2]}
    end

    test "a module of imports that is no map has none of them" do
      for env <- [nil, :env, [{"i", fn _wasm, n -> n end}]] do
        assert {:error, %LinkError{imports: [%{problem: :missing}]}} =
                 Beamr.instantiate(@one_import, imports: %{"env" => env})
      end
    end

    test "an import may be a captured function" do
      wasm = with_import(&__MODULE__.double/2)
      assert Beamr.call(wasm, "f", [21]) == {:ok, [43]}
    end

    test "instances of one module each have their own imports" do
      module = Beamr.compile!(@one_import)

      for n <- 1..3 do
        imports = %{"env" => %{"i" => fn _wasm, x -> n * x end}}

        assert Beamr.instantiate!(module, imports: imports) |> Beamr.call("f", [10]) ==
                 {:ok, [10 * n + 1]}
      end
    end

    test "one name may be imported twice" do
      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "i" (func $one (param i32) (result i32)))
            (import "env" "i" (func $same (param i32) (result i32)))
            (func (export "f") (result i32 i32) (call $one (i32.const 1)) (call $same (i32.const 2))))
          """,
          imports: %{"env" => %{"i" => fn _wasm, n -> n * 10 end}}
        )

      assert Beamr.call(wasm, "f", []) == {:ok, [10, 20]}
    end

    test "one name may be imported twice with different types" do
      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "i" (func $one (param i32) (result i32)))
            (import "env" "i" (func $other (param f64) (result f64)))
            (func (export "f") (result i32 f64) (call $one (i32.const 1)) (call $other (f64.const 2.5))))
          """,
          imports: %{"env" => %{"i" => fn _wasm, n -> n * 10 end}}
        )

      assert Beamr.call(wasm, "f", []) == {:ok, [10, 25.0]}
    end

    test "an import may be exported again and called from outside" do
      wasm =
        Beamr.instantiate!(
          ~S|(module (import "env" "i" (func $i (param i32) (result i32))) (export "f" (func $i)))|,
          imports: %{"env" => %{"i" => fn _wasm, n -> n * 2 end}}
        )

      assert Beamr.call(wasm, "f", [21]) == {:ok, [42]}
    end

    def double(_wasm, n), do: n * 2
  end

  describe "the start function" do
    @start """
    (module
      (import "env" "i" (func $i (param i32) (result i32)))
      (memory (export "memory") 1)
      (func $start (i32.store (i32.const 0) (call $i (i32.const 20))))
      (start $start)
      (func (export "get") (result i32) (i32.load (i32.const 0)))
      (func (export "add") (param i32 i32) (result i32)
        (i32.add (local.get 0) (local.get 1))))
    """

    test "runs before the instance is answered" do
      wasm =
        Beamr.instantiate!("""
        (module (memory (export "memory") 1)
          (func $start (i32.store8 (i32.const 5) (i32.const 9))) (start $start))
        """)

      assert Beamr.IO.read(wasm, 5, 1) == {:ok, <<9>>}
    end

    test "may call imports, which may reach the memory and call the guest" do
      i = fn wasm, n ->
        :ok = Beamr.IO.write(wasm, 100, "here")
        [sum] = Beamr.call!(wasm, "add", [n, 1])
        sum * 2
      end

      assert {:ok, wasm} = Beamr.instantiate(@start, imports: %{"env" => %{"i" => i}})
      assert Beamr.call(wasm, "get", []) == {:ok, [42]}
      assert Beamr.IO.read(wasm, 100, 4) == {:ok, "here"}
    end

    test "that traps makes no instance" do
      assert {:error, %Trap{reason: :unreachable, function: nil, backtrace: backtrace}} =
               Beamr.instantiate("(module (func $begin unreachable) (start $begin))")

      assert [%{name: "begin"}] = backtrace
    end

    test "that calls an import that fails makes no instance, and says which" do
      i = fn _wasm, _n -> raise "no" end

      assert {:error,
              %ImportError{module: "env", name: "i", reason: %RuntimeError{message: "no"}}} =
               Beamr.instantiate(@start, imports: %{"env" => %{"i" => i}})
    end

    test "an import that keeps the instance of a failed start has a closed one" do
      test = self()

      i = fn wasm, _n ->
        send(test, {:wasm, wasm})
        throw(:no)
      end

      {:error, %ImportError{}} = Beamr.instantiate(@start, imports: %{"env" => %{"i" => i}})
      assert_received {:wasm, wasm}
      assert {:error, %CallError{reason: :closed}} = Beamr.call(wasm, "get", [])
      assert {:error, %Beamr.MemoryError{reason: :closed}} = Beamr.IO.size(wasm)
    end

    test "that never ends is ended past its time" do
      assert {:error, %CallError{reason: :timeout, function: nil}} =
               Beamr.instantiate("(module (func $f (loop (br 0))) (start $f))", timeout: 1)
    end

    test "data that lies outside the memory makes no instance" do
      assert {:error, %Trap{reason: :memory_out_of_bounds, function: nil}} =
               Beamr.instantiate(~S|(module (memory 1) (data (i32.const 65535) "ab"))|)
    end

    test "a memory that nobody can have makes no instance" do
      assert {:error, %CallError{reason: :system, detail: detail}} =
               Beamr.instantiate("(module (memory i64 0x8000_0000_0000))")

      assert is_binary(detail)
    end
  end

  describe "an import" do
    test "takes the instance first and then the guest's arguments" do
      test = self()

      wasm =
        with_import(fn wasm, n ->
          send(test, {:args, wasm, n})
          n
        end)

      {:ok, _results} = Beamr.call(wasm, "f", [-5])
      assert_received {:args, ^wasm, -5}
    end

    test "runs in the calling process" do
      test = self()

      wasm =
        with_import(fn _wasm, n ->
          send(test, {:ran_in, self()})
          n
        end)

      {:ok, _results} = Beamr.call(wasm, "f", [0])
      assert_received {:ran_in, ^test}

      task = Task.async(fn -> Beamr.call(wasm, "f", [0]) end)
      {:ok, _results} = Task.await(task)
      pid = task.pid
      assert_received {:ran_in, ^pid}
    end

    test "gets values of every type, and answers them" do
      test = self()
      types = "i32 i64 f32 f64 v128 externref"

      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "i" (func $i (param #{types}) (result #{types})))
            (export "f" (func $f))
            (func $f (param #{types}) (result #{types})
              (call $i #{Enum.map_join(0..5, " ", &"(local.get #{&1})")})))
          """,
          imports: %{
            "env" => %{
              "i" => fn _wasm, a, b, c, d, e, f ->
                send(test, [a, b, c, d, e, f])
                [a + 1, b + 1, c + 1, :neg_infinity, String.reverse(e), {f}]
              end
            }
          }
        )

      v128 = "0123456789abcdef"
      args = [2 ** 32 - 2, 2 ** 64 - 2, 1.5, :nan, v128, %{self() => make_ref()}]
      seen = [-2, -2 | Enum.drop(args, 2)]

      assert Beamr.call(wasm, "f", args) ==
               {:ok, [-1, -1, 2.5, :neg_infinity, "fedcba9876543210", {List.last(args)}]}

      assert_received ^seen
    end

    test "of no results may return anything" do
      for term <- [nil, :ok, 1.5, [1 | 2], {:error, :x}, fn -> nil end] do
        wasm =
          Beamr.instantiate!(
            ~S|(module (import "env" "i" (func $i)) (func (export "f") (call $i)))|,
            imports: %{"env" => %{"i" => fn _wasm -> term end}}
          )

        assert Beamr.call(wasm, "f", []) == {:ok, []}
      end
    end

    test "of several results returns a list of them" do
      wasm = two_results([1, 2.5])
      assert Beamr.call(wasm, "f", []) == {:ok, [1, 2.5]}
    end

    test "may read and write the memory of the suspended guest" do
      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "upcase" (func $upcase (param i32 i32)))
            (memory (export "memory") 1)
            (data (i32.const 8) "hello")
            (func (export "f") (result i32)
              (i32.store8 (i32.const 8) (i32.const 0x6a)) ;; "j"
              (call $upcase (i32.const 8) (i32.const 5))
              (i32.load8_u (i32.const 8))))
          """,
          imports: %{
            "env" => %{
              "upcase" => fn wasm, offset, length ->
                text = Beamr.IO.read!(wasm, offset, length)
                Beamr.IO.write!(wasm, offset, String.upcase(text))
              end
            }
          }
        )

      assert Beamr.call(wasm, "f", []) == {:ok, [?J]}
      assert Beamr.IO.read(wasm, 8, 5) == {:ok, "JELLO"}
    end

    test "sees the memory that the guest has grown, before and after a nested call grows it" do
      test = self()

      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "i" (func $i))
            (memory (export "memory") 1)
            (func (export "grow") (param i32) (drop (memory.grow (local.get 0))))
            (func (export "f") (result i32)
              (drop (memory.grow (i32.const 1)))
              (call $i)
              (i32.load8_u (i32.const 6553600))))
          """,
          imports: %{
            "env" => %{
              "i" => fn wasm ->
                send(test, {:before, Beamr.IO.size!(wasm)})
                [] = Beamr.call!(wasm, "grow", [1000])
                send(test, {:after, Beamr.IO.size!(wasm)})
                Beamr.IO.write!(wasm, 6_553_600, <<42>>)
              end
            }
          }
        )

      assert Beamr.call(wasm, "f", []) == {:ok, [42]}
      assert_received {:before, 131_072}
      assert_received {:after, 65_667_072}
    end

    test "may be called very often in one call" do
      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "i" (func $i (param i32) (result i32)))
            (func (export "f") (param $n i32) (result i32) (local $sum i32)
              (loop $again
                (local.set $sum (i32.add (local.get $sum) (call $i (local.get $n))))
                (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
              (local.get $sum)))
          """,
          imports: %{"env" => %{"i" => fn _wasm, n -> n end}}
        )

      assert Beamr.call(wasm, "f", [10_000]) == {:ok, [50_005_000]}
    end

    test "takes messages as any function of its process does" do
      wasm = with_import(fn _wasm, n -> receive do: ({:add, m} -> n + m) end)
      send(self(), {:add, 5})
      assert Beamr.call(wasm, "f", [1]) == {:ok, [7]}
    end

    test "may call a guest of another instance" do
      other = Beamr.instantiate!(~S|(module (func (export "g") (param i32) (result i32)
        (i32.mul (local.get 0) (i32.const 3))))|)

      wasm = with_import(fn _wasm, n -> other |> Beamr.call!("g", [n]) |> hd() end)
      assert Beamr.call(wasm, "f", [5]) == {:ok, [16]}
    end

    test "may make instances" do
      wasm =
        with_import(fn _wasm, n ->
          inner = with_import(fn _wasm, n -> n * 2 end)
          inner |> Beamr.call!("f", [n]) |> hd()
        end)

      assert Beamr.call(wasm, "f", [5]) == {:ok, [12]}
    end
  end

  describe "an import that fails" do
    for {how, kind, reason} <-
          [
            raise: {:error, %RuntimeError{message: "boom"}},
            erlang_error: {:error, :boom},
            badarith: {:error, :badarith},
            throw: {:throw, {:a, 1}},
            exit: {:exit, :boom},
            exit_normal: {:exit, :normal}
          ]
          |> Enum.map(fn {how, {kind, reason}} -> {how, kind, Macro.escape(reason)} end) do
      test "by #{how} ends the call with what it failed with" do
        wasm = with_import(fn _wasm, n -> fail(unquote(how), n) end)

        assert {:error, %ImportError{module: "env", name: "i"} = error} =
                 Beamr.call(wasm, "f", [0])

        assert {error.kind, error.reason} == {unquote(kind), unquote(reason)}
        assert [{__MODULE__, :fail, _, _} | _] = error.stacktrace
        assert Beamr.call(wasm, "ok", []) == {:ok, [7]}
      end

      test "by #{how} fails call!/4 as it was" do
        wasm = with_import(fn _wasm, n -> fail(unquote(how), n) end)

        caught =
          try do
            Beamr.call!(wasm, "f", [0])
          catch
            kind, reason -> {kind, reason, List.first(__STACKTRACE__)}
          end

        assert {unquote(kind), unquote(reason), {__MODULE__, :fail, _, _}} = caught
        assert Beamr.call(wasm, "ok", []) == {:ok, [7]}
      end
    end

    defp fail(:raise, _n), do: raise("boom")
    defp fail(:erlang_error, _n), do: :erlang.error(:boom)
    defp fail(:badarith, n), do: 1 / n
    defp fail(:throw, _n), do: throw({:a, 1})
    defp fail(:exit, _n), do: exit(:boom)
    defp fail(:exit_normal, _n), do: exit(:normal)

    test "leaves what the guest and the import had written" do
      wasm =
        with_import(fn wasm, _n ->
          Beamr.IO.write!(wasm, 0, "kept")
          throw(:out)
        end)

      assert {:error, %ImportError{}} = Beamr.call(wasm, "f", [0])
      assert Beamr.IO.read(wasm, 0, 4) == {:ok, "kept"}
    end

    test "is not caught by the guest" do
      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "i" (func $i))
            (func (export "f") (result i32)
              (block $caught (try_table (catch_all $caught) (call $i)))
              (i32.const 1)))
          """,
          imports: %{"env" => %{"i" => fn _wasm -> throw(:out) end}}
        )

      assert {:error, %ImportError{kind: :throw, reason: :out}} = Beamr.call(wasm, "f", [])
    end

    test "leaves no message and no link behind" do
      wasm = with_import(fn _wasm, _n -> raise "no" end)
      before = Process.info(self(), [:links, :monitors, :messages])
      for _ <- 1..10, do: {:error, _error} = Beamr.call(wasm, "f", [0])
      assert Process.info(self(), [:links, :monitors, :messages]) == before
    end
  end

  describe "an import that returns what is no result of its type" do
    for value <- [nil, :ok, 1.0, "1", [1], 2 ** 32, -(2 ** 31) - 1, 10 ** 100] do
      test "#{inspect(value)} for an i32 names the import, what is wanted and what was given" do
        wasm = with_import(fn _wasm, _n -> unquote(value) end)

        assert {:error, %ImportError{kind: :result, reason: :bad_result} = error} =
                 Beamr.call(wasm, "f", [0])

        assert {error.module, error.name, error.wanted} == {"env", "i", [:i32]}
        assert error.given === unquote(value)
        assert Beamr.call(wasm, "ok", []) == {:ok, [7]}
      end
    end

    for value <- [
          nil,
          1,
          [],
          [1],
          [1, 2.5, 3],
          [2.5, 1],
          [1, nil],
          {1, 2.5},
          [1 | 2.5],
          [1, 2.5 | 3]
        ] do
      test "#{inspect(value)} for an i32 and an f64" do
        wasm = two_results(unquote(Macro.escape(value)))

        assert {:error, %ImportError{kind: :result} = error} = Beamr.call(wasm, "f", [])
        assert {error.module, error.name, error.wanted} == {"env", "i", [:i32, :f64]}
        assert error.given === unquote(Macro.escape(value))
        assert Beamr.call(wasm, "ok", []) == {:ok, [7]}
      end
    end

    test "is raised by call!/4 as an ImportError" do
      wasm = with_import(fn _wasm, _n -> :bad end)
      assert_raise ImportError, ~r/"env" "i"/, fn -> Beamr.call!(wasm, "f", [0]) end
    end

    test "a function of another instance" do
      source = """
      (module
        (import "env" "i" (func $i (result funcref)))
        (elem declare func $own)
        (func $own)
        (func (export "own") (result funcref) (ref.func $own))
        (func (export "f") (result funcref) (call $i)))
      """

      other = Beamr.instantiate!(source, imports: %{"env" => %{"i" => fn _wasm -> nil end}})
      [foreign] = Beamr.call!(other, "own", [])
      wasm = Beamr.instantiate!(source, imports: %{"env" => %{"i" => fn _wasm -> foreign end}})

      assert {:error, %ImportError{kind: :result, name: "i", given: ^foreign}} =
               Beamr.call(wasm, "f", [])
    end

    test "a function of another type than the one wanted" do
      wasm =
        Beamr.instantiate!(
          """
          (module
            (type $unary (func (param i32)))
            (import "env" "i" (func $i (result (ref null $unary))))
            (elem declare func $nullary)
            (func $nullary)
            (func (export "nullary") (result funcref) (ref.func $nullary))
            (func (export "f") (drop (call $i))))
          """,
          imports: %{"env" => %{"i" => fn wasm -> hd(Beamr.call!(wasm, "nullary", [])) end}}
        )

      assert {:error, %ImportError{kind: :result, module: "env", name: "i"}} =
               Beamr.call(wasm, "f", [])
    end
  end

  defp two_results(term) do
    Beamr.instantiate!(
      """
      (module
        (import "env" "i" (func $i (result i32 f64)))
        (func (export "f") (result i32 f64) (call $i))
        (func (export "ok") (result i32) (i32.const 7)))
      """,
      imports: %{"env" => %{"i" => fn _wasm -> term end}}
    )
  end

  describe "a call inside an import" do
    # f(n) = n + f(n - 1), by way of the host.
    defp sum(opts \\ []) do
      sum = fn
        _wasm, 0 -> 0
        wasm, n -> hd(Beamr.call!(wasm, "sum", [n], timeout: :infinity))
      end

      Beamr.instantiate!(
        """
        (module
          (import "env" "sum" (func $import (param i32) (result i32)))
          (func (export "sum") (param $n i32) (result i32)
            (i32.add (local.get $n) (call $import (i32.sub (local.get $n) (i32.const 1))))))
        """,
        [imports: %{"env" => %{"sum" => sum}}] ++ opts
      )
    end

    for depth <- [1, 2, 50, 1000] do
      test "works at depth #{depth}" do
        n = unquote(depth)
        result = Beamr.call(sum(), "sum", [n], timeout: :infinity)
        assert result == {:ok, [div(n * (n + 1), 2)]}
      end
    end

    test "works up to max_depth, and is refused beyond it" do
      wasm = sum(max_depth: 10)
      assert Beamr.call(wasm, "sum", [10]) == {:ok, [55]}

      assert_raise CallError, ~r/max_depth \(10\)/, fn -> Beamr.call!(wasm, "sum", [11]) end
      assert Beamr.call(wasm, "sum", [10]) == {:ok, [55]}
    end

    test "without end is refused at a default depth" do
      test = self()

      down = fn wasm ->
        with {:error, error} <- Beamr.call(wasm, "f", [], timeout: :infinity) do
          send(test, error)
        end
      end

      wasm =
        Beamr.instantiate!(
          ~S|(module (import "env" "down" (func $down)) (func (export "f") (call $down)))|,
          imports: %{"env" => %{"down" => down}}
        )

      assert Beamr.call(wasm, "f", [], timeout: :infinity) == {:ok, []}
      assert_received %CallError{reason: :depth, wanted: 1000}
      refute_received _
    end

    # `f` does with its import what the test wants, and answers the i32 at 0 afterwards.
    defp nesting(import) do
      Beamr.instantiate!(
        """
        (module
          (import "env" "i" (func $i))
          (import "env" "j" (func $j))
          (memory (export "memory") 1)
          (tag $e)
          (func (export "f") (result i32) (call $i) (i32.load (i32.const 0)))
          (func (export "j") (call $j))
          (func (export "set") (param i32) (i32.store (i32.const 0) (local.get 0)))
          (func (export "trap") unreachable)
          (func (export "throw") (throw $e))
          (func (export "catch") (result i32)
            (block $caught (try_table (catch_all $caught) (throw $e)))
            (i32.const 5))
          (func $endless (export "endless") (loop (br 0)))
          (func $deep (export "deep") (call $deep)))
        """,
        imports: %{"env" => %{"i" => import, "j" => fn _wasm -> raise "inner" end}}
      )
    end

    defp in_import(function, args \\ [], opts \\ []) do
      test = self()

      wasm =
        nesting(fn wasm ->
          send(test, {:nested, Beamr.call(wasm, function, args, opts)})
          Beamr.call!(wasm, "set", [11])
        end)

      assert Beamr.call(wasm, "f", []) == {:ok, [11]}
      assert Beamr.call(wasm, "catch", []) == {:ok, [5]}
      assert_received {:nested, result}
      result
    end

    test "changes the guest's state" do
      assert in_import("set", [5]) == {:ok, []}
    end

    test "that traps leaves the outer call going" do
      assert {:error, %Trap{reason: :unreachable}} = in_import("trap")
    end

    test "that overflows the stack leaves the outer call going" do
      assert {:error, %Trap{reason: :stack_overflow}} = in_import("deep")
    end

    test "that throws an exception of WebAssembly leaves the outer call going" do
      assert {:error, %Trap{reason: :uncaught_exception}} = in_import("throw")
    end

    test "that catches one works" do
      assert in_import("catch") == {:ok, [5]}
    end

    test "whose own import fails leaves the outer call going" do
      assert {:error, %ImportError{name: "j", reason: %RuntimeError{message: "inner"}}} =
               in_import("j")
    end

    test "that is out of time leaves the outer call going" do
      assert {:error, %CallError{reason: :timeout}} = in_import("endless", [], timeout: 1)
    end

    test "that cannot be made leaves the outer call going" do
      assert {:error, %CallError{reason: :unknown_function}} = in_import("nope")
      assert {:error, %CallError{reason: :arity}} = in_import("set")
      assert {:error, %CallError{reason: :argument}} = in_import("set", [:x])
    end

    test "has no more time than the call around it" do
      wasm = nesting(fn wasm -> Beamr.call!(wasm, "endless", [], timeout: :infinity) end)

      assert {:error, %ImportError{name: "i", reason: %CallError{reason: :timeout}}} =
               Beamr.call(wasm, "f", [], timeout: 20)

      assert Beamr.call(wasm, "catch", []) == {:ok, [5]}
    end

    test "whose failure comes out of the import fails the outer call with the same reason" do
      wasm = nesting(fn wasm -> Beamr.call!(wasm, "j", []) end)

      assert {:error, %ImportError{name: "i", reason: %RuntimeError{message: "inner"}}} =
               Beamr.call(wasm, "f", [])
    end

    test "goes on after many of them have failed" do
      test = self()

      wasm =
        nesting(fn wasm ->
          for name <- ~w(trap throw deep j nope), _ <- 1..20 do
            {:error, _error} = Beamr.call(wasm, name, [])
          end

          send(test, Beamr.call(wasm, "catch", []))
        end)

      assert Beamr.call(wasm, "f", []) == {:ok, [0]}
      assert_received {:ok, [5]}
    end
  end

  describe "a guest that never ends" do
    test "leaves its neighbours running" do
      for _ <- 1..(2 * System.schedulers_online() + 2),
          do: start_endless(Beamr.instantiate!(endless()))

      neighbour = Beamr.instantiate!(endless())

      for _ <- 1..100 do
        assert Beamr.call(neighbour, "f", []) == {:ok, [7]}
        assert Task.await(Task.async(fn -> :answer end)) == :answer
      end
    end

    test "leaves the compiler and new instances running" do
      for _ <- 1..(2 * System.schedulers_online() + 2),
          do: start_endless(Beamr.instantiate!(endless()))

      assert {:ok, wasm} = Beamr.instantiate(endless())
      assert Beamr.call(wasm, "f", []) == {:ok, [7]}
    end

    test "moves on while others read its memory" do
      wasm = Beamr.instantiate!(endless())
      start_endless(wasm)

      Enum.reduce(1..20, 0, fn _, seen ->
        eventually(fn -> counter(wasm) > seen end)
        counter(wasm)
      end)
    end

    test "sees what others write to its memory" do
      wasm = Beamr.instantiate!(endless())
      start_endless(wasm)
      assert counter(wasm) < 2 ** 60
      :ok = Beamr.IO.write(wasm, 0, <<2 ** 60::little-64>>)
      assert counter(wasm) >= 2 ** 60
      eventually(fn -> counter(wasm) > 2 ** 60 end)
    end

    test "dies with its process, and lets the next caller in" do
      wasm = Beamr.instantiate!(endless())

      for _ <- 1..5 do
        task = start_endless(wasm)
        next = Task.async(fn -> Beamr.call(wasm, "f", []) end)
        await_waiting(next.pid)
        kill(task.pid)
        assert Task.await(next) == {:ok, [7]}
        :ok = Beamr.IO.write(wasm, 0, <<0::64>>)
      end
    end

    test "dies with its process when that exits in an import of a nested call" do
      wasm = holder()
      task = start_hold(wasm)
      kill(task.pid)
      assert Beamr.call(wasm, "next", []) == {:ok, [1]}
    end

    test "is stopped at whatever depth its calls are nested" do
      test = self()

      nest = fn
        wasm, 0 -> Beamr.call!(wasm, "count", [], timeout: :infinity)
        wasm, n -> Beamr.call!(wasm, "nest", [n - 1], timeout: :infinity)
      end

      source = """
      (module
        (import "env" "nest" (func $nest (param i32)))
        (memory (export "memory") 1)
        (func (export "nest") (param i32) (call $nest (local.get 0)))
        (func (export "f") (result i32) (i32.const 7))
        (func (export "count")
          (loop $again
            (i64.store (i32.const 0) (i64.add (i64.load (i32.const 0)) (i64.const 1)))
            (br $again))))
      """

      wasm = Beamr.instantiate!(source, imports: %{"env" => %{"nest" => nest}})

      pid = spawn(fn -> send(test, Beamr.call(wasm, "nest", [10], timeout: :infinity)) end)

      eventually(fn -> counter(wasm) > 0 end)
      kill(pid)
      assert Beamr.call(wasm, "f", []) == {:ok, [7]}
      refute_received _
    end

    test "in its start function dies with its process" do
      test = self()

      imports = %{"env" => %{"i" => fn wasm -> send(test, {:wasm, wasm}) end}}

      pid =
        spawn(fn ->
          Beamr.instantiate(
            """
            (module (import "env" "i" (func $i)) (memory (export "memory") 1)
              (func $start (call $i) (loop (br 0)))
              (start $start)
              (func (export "f")))
            """,
            imports: imports,
            timeout: :infinity
          )
        end)

      assert_receive {:wasm, wasm}, 10_000
      assert Beamr.IO.size(wasm) == {:ok, 65_536}
      kill(pid)
      assert {:error, %CallError{reason: :closed}} = Beamr.call(wasm, "f", [])
    end
  end

  describe "a busy instance" do
    test "is used by one process after the other, first come, first served" do
      wasm = holder()
      held = start_hold(wasm)

      waiting =
        for _ <- 1..5 do
          task = Task.async(fn -> Beamr.call(wasm, "next", []) end)
          await_waiting(task.pid)
          task
        end

      send(held.pid, :go_on)
      assert Task.await(held) == {:ok, []}
      assert Task.await_many(waiting) == for(n <- 1..5, do: {:ok, [n]})
    end

    test "gives each caller its own answer" do
      wasm = with_import(fn _wasm, n -> if :erlang.yield(), do: n end)

      tasks =
        for first <- 1..8 do
          Task.async(fn ->
            for n <- first..1000//8, do: assert(Beamr.call(wasm, "f", [n]) == {:ok, [n + 1]})
          end)
        end

      Task.await_many(tasks, 60_000)
    end

    test "is given up past the caller's time, without a trace" do
      wasm = holder()
      held = start_hold(wasm)

      for timeout <- [0, 5] do
        assert {:error, %CallError{reason: :timeout, function: "next"}} =
                 Beamr.call(wasm, "next", [], timeout: timeout)
      end

      send(held.pid, :go_on)
      Task.await(held)
      assert Beamr.call(wasm, "next", []) == {:ok, [1]}
      refute_received _
    end

    test "skips those who died waiting" do
      wasm = holder()
      held = start_hold(wasm)
      [one, two, three] = for _ <- 1..3, do: Task.async(fn -> Beamr.call(wasm, "next", []) end)
      for task <- [one, two, three], do: await_waiting(task.pid)
      kill(one.pid)
      kill(two.pid)
      send(held.pid, :go_on)
      assert Task.await(three) == {:ok, [1]}
    end

    test "refuses a call that cannot be made at once, without waiting" do
      wasm = holder()
      start_hold(wasm)

      assert {:error, %CallError{reason: :unknown_function}} =
               Beamr.call(wasm, "nope", [], timeout: :infinity)

      assert {:error, %CallError{reason: :arity}} =
               Beamr.call(wasm, "next", [1], timeout: :infinity)
    end

    test "goes on when callers come, die and give up in any order" do
      wasm = with_import(fn _wasm, n -> if :erlang.yield(), do: n end)

      for_random_cases(100, fn ->
        {pid, monitor} =
          spawn_monitor(fn ->
            for n <- 1..20, do: Beamr.call(wasm, "f", [n], timeout: :rand.uniform(3) - 1)
          end)

        for _ <- 1..:rand.uniform(20), do: Beamr.call(wasm, "ok", [], timeout: :rand.uniform(2))
        if :rand.uniform(2) == 1, do: Process.exit(pid, :kill)
        assert_receive {:DOWN, ^monitor, :process, ^pid, _reason}, 10_000
        assert Beamr.call(wasm, "f", [1]) == {:ok, [2]}
      end)

      refute_received _
    end
  end

  describe "inspect/1" do
    test "shows the module's name" do
      assert inspect(Beamr.instantiate!("(module $calculator)")) == "#Beamr.Instance<calculator>"
      assert inspect(Beamr.instantiate!("(module)")) == "#Beamr.Instance<unnamed>"
    end
  end
end
